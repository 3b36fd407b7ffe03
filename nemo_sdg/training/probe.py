"""Whether the NeMo that is installed is the one that this package was built against."""

from __future__ import annotations

from importlib import metadata

from nemo_sdg.errors import ConfigError

SUPPORTED = {"nemo-toolkit": "2.7.3", "megatron-core": "0.15.3"}
"""NeMo 2.7.3 is the last one with `nemo.collections.llm`; megatron-core 0.16 breaks its optimizer set-up."""


def check(installed: dict[str, str | None] | None = None) -> None:
    """Raises ConfigError, naming the supported pair, when another one is installed.

    Args:
        installed: version by package; None asks the environment.
    """
    found = _installed() if installed is None else installed
    if found != SUPPORTED:
        raise ConfigError(
            "training runs with one pair of versions",
            where="python environment",
            found=_pair(found),
            expected=_pair(SUPPORTED),
            way_out=_way_out(found),
        )


def check_llm() -> None:
    """Raises ConfigError if NeMo dropped its fine-tuning API, which it does silently without nvidia-modelopt."""
    from nemo.collections import llm

    if not hasattr(llm, "finetune"):
        raise ConfigError(
            "NeMo came up without its training API",
            where="python environment",
            found="no nemo.collections.llm.finetune",
            expected="NeMo with all that its llm collection imports",
            way_out="pip install nvidia-modelopt==0.37.0",
        )


def _installed() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in SUPPORTED:
        try:
            versions[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _way_out(found: dict[str, str | None]) -> str:
    pair = " ".join(f"{name}=={version}" for name, version in SUPPORTED.items())
    if None in found.values():
        return f"pip install {pair}"
    # Where both are there, in a container for one, what they need is there too; an index would bring another torch.
    return f"pip install --no-deps {pair}, which leaves the torch that is there"


def _pair(versions: dict[str, str | None]) -> str:
    return " with ".join(f"{name} {version or '(missing)'}" for name, version in versions.items())
