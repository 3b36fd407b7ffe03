"""`model_config.yaml` and the tokenizer: what a released folder, and each folder that we write, says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.config.selection import OUTPUTS
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.shapes import NUM_REWARD_OUTPUTS, NemotronShape

CONFIG = "model_config.yaml"
TOKENIZER = "tokenizer.model"
_WAY_OUT = "give the folder of a Nemotron checkpoint: model_config.yaml, a tokenizer .model and model_weights/"
_TOKENIZER_BYTES = 64 << 20
_CONFIG_BYTES = 128 << 10
"""The released configs have 2.5 kB; PyYAML reads about 100 kB a second."""
_CONFIG_DEPTH = 32
_CONFIG_NODES = 50_000


def read_yaml(files: Files, name: str) -> dict[str, Any]:
    """A YAML mapping of plain data. Raises CheckpointError for tags, other types, or a file that is not there."""
    where = files.path(name)
    member = files.find(name)
    if member is None:
        raise CheckpointError("the folder is not a checkpoint", where=files.where, found=f"no {name}", way_out=_WAY_OUT)
    text = member.read(at_most=_CONFIG_BYTES)
    try:
        config = parse_yaml(text.decode("utf-8"))
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            "the model config is not plain YAML",
            where=where,
            found=" ".join(str(error).split())[:160],
            way_out=_WAY_OUT,
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            "the model config is not a mapping", where=where, found=type(config).__name__, way_out=_WAY_OUT
        )
    return config


class _PlainLoader(yaml.SafeLoader):
    """Mappings, lists, text and numbers: no tags, no depth, and aliases only as long as they unfold to little."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0
        self._sizes: dict[int, int] = {}
        """Nodes that a composed node unfolds to, by its id."""

    def compose_node(self, parent, index):  # noqa: ANN001, ANN201
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"the tag {event.tag}")
        if self._depth > _CONFIG_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_CONFIG_DEPTH}")
        before = self._count
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise yaml.YAMLError(f"the alias {event.anchor} inside of what it stands for")
            self._count += self._sizes[id(node)]
        else:
            self._count += 1
            self._sizes[id(node)] = self._count - before
        if self._count > _CONFIG_NODES:
            raise yaml.YAMLError(f"more than {_CONFIG_NODES} values")
        if node.tag == "tag:yaml.org,2002:merge":
            raise yaml.YAMLError("a merge key, <<")
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > 32:
            raise yaml.YAMLError(f"a number of {len(node.value)} digits")
        return node


def parse_yaml(text: str) -> Any:
    """Plain data. Raises yaml.YAMLError, or what PyYAML lets through for values that are none, as for `2001-99-99`."""
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_config(files: Files) -> dict[str, Any]:
    return read_yaml(files, CONFIG)


def tokenizer_name(files: Files, config: dict[str, Any]) -> str | None:
    """The SentencePiece file: the one that the config names (`nemo:` prefix), or the only one there is."""
    section = config.get("tokenizer")
    named = [section.get(key) for key in ("model", "tokenizer_model")] if isinstance(section, dict) else []
    for name in (name.removeprefix("nemo:") for name in named if isinstance(name, str)):
        if Path(name).name == name and files.find(name) is not None:
            return name
    found = [name for name, is_folder in files.entries().items() if name.endswith(".model") and not is_folder]
    # The released folders hold the same file under two names.
    members = [member for member in map(files.find, found) if member is not None]
    if len(members) > 4 or len({member.size for member in members}) != 1:
        return None
    if len({member.read(_TOKENIZER_BYTES) for member in members}) != 1:
        return None
    return members[0].name


def read_tokenizer(files: Files, name: str | None) -> bytes:
    """The bytes of the SentencePiece model. Raises CheckpointError if the checkpoint has none."""
    member = None if name is None else files.find(name)
    if member is None:
        raise CheckpointError(
            "the tokenizer is missing", where=files.where, expected="one SentencePiece file (*.model)",
            way_out="put the tokenizer.model of the released checkpoint into the folder",
        )  # fmt: skip
    return member.read(_TOKENIZER_BYTES)


def write_description(
    path: Path,
    shape: NemotronShape,
    tokenizer: bytes,
    *,
    reward: bool,
    outputs: Mapping[str, int] = OUTPUTS,
    dtype: str = "bf16",
    tp: int = 1,
    pp: int = 1,
) -> None:
    """Write `model_config.yaml` and the tokenizer into a model folder that is being made.

    Args:
        outputs: of a reward model, by name; written where they are not NVIDIA's.
        tp, pp: the topology whose shards are the pieces of the weights, as NeMo records it.
    """
    (path / TOKENIZER).write_bytes(tokenizer)
    config = shape.model_config()
    config["tokenizer"] = {
        "library": "sentencepiece", "model": f"nemo:{TOKENIZER}", "tokenizer_model": f"nemo:{TOKENIZER}"
    }  # fmt: skip
    config["precision"] = dtype
    config["tensor_model_parallel_size"], config["pipeline_model_parallel_size"] = tp, pp
    if reward:
        config["reward_model_type"] = "regression"
        config["regression"] = {"num_attributes": NUM_REWARD_OUTPUTS}
        if dict(outputs) != OUTPUTS:
            config["regression"]["outputs"] = dict(outputs)
    (path / CONFIG).write_text(yaml.safe_dump(config, sort_keys=True), encoding="utf-8")
