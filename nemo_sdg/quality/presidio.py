"""Personal data that Microsoft's presidio finds: names and places too, by a language model of spaCy's.

An extra (`pip install nemo-sdg[presidio]`); nothing of it is imported until `select.pii_engine` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from nemo_sdg.errors import ConfigError

_SURE = 0.5
"""Confidence at least: below it presidio lists each number of some length as what it might be."""
_NOT_PERSONAL = {"DATE_TIME", "URL", "NRP", "CARDINAL", "ORDINAL", "PERCENT", "QUANTITY", "MONEY", "ORGANIZATION"}
"""What presidio finds and no person can be told by."""

_ASK_THE_NETWORK = ("EmailRecognizer", "UrlRecognizer")
"""These fetch a list of domains when first used; the rules find addresses without it, and a URL tells no person."""


def require(model: str) -> None:
    """Raises ConfigError when presidio or the model is not installed. Nothing is downloaded."""
    try:
        import presidio_analyzer  # noqa: F401
        import spacy
    except ImportError as error:
        raise ConfigError(
            "presidio is not installed", where="select.pii_engine", found=str(error),
            way_out="install it with `pip install 'nemo-sdg[presidio]'`, or set select.pii_engine=rules",
        ) from None  # fmt: skip
    if not (spacy.util.is_package(model) or Path(model).is_dir()):
        raise ConfigError(
            "there is no such model of spaCy's", where="select.pii_model", found=model,
            way_out=f"install it with `python -m spacy download {model}`, or name one that is there",
        )  # fmt: skip


@lru_cache(maxsize=1)
def finder(model: str) -> Callable[[str], list[tuple[int, int, str]]]:
    """(begin, end, kind) of what presidio finds in a text, by a spaCy model whose name begins with its language.

    Raises ConfigError as `require` does.
    """
    require(model)
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    language = Path(model).name.split("_")[0]
    models = [{"lang_code": language, "model_name": model}]
    engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=[language])
    for name in _ASK_THE_NETWORK:
        analyzer.registry.remove_recognizer(name)

    def find(text: str) -> list[tuple[int, int, str]]:
        found = analyzer.analyze(text=text, language=language, score_threshold=_SURE)
        best = sorted(found, key=lambda one: (-one.score, one.start - one.end, one.start, one.entity_type))
        return [(one.start, one.end, one.entity_type) for one in best if one.entity_type not in _NOT_PERSONAL]

    return find
