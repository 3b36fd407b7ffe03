"""A config seen as values: by dotted key, as YAML text, and as the fingerprint that names it."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from typing import Any, Iterable, Iterator

import yaml

from nemo_sdg.config.endpoints import without_addresses
from nemo_sdg.config.selection import OUTPUTS
from nemo_sdg.config.settings import RunConfig
from nemo_sdg.config.training import TUNING

_NOT_IDENTITY = ("topology.", "run.timeout_s", "run.stop_after", "run.threads", "run.rounds", "run.strict", "run.tensorboard", "run.wandb")
_NOT_IDENTITY += ("generate.slots", "generate.prefill_tokens", "generate.kv_cache_bytes", "generate.fixed_shape")
_NOT_IDENTITY += ("models.placement", "generate.topology.", "score.topology.", "score.pack_tokens")
_NOT_IDENTITY += tuple(
    f"{group}.endpoint.{key}" for group in ("generate", "score", "judge")
    for key in ("url", "key_env", "concurrency", "timeout_s", "retries")
)  # fmt: skip
_NOT_IDENTITY += tuple(
    f"{group}.{key}" for group in ("sft", "reward", "preference") for key in ("restart_every", "keep_last")
)
_NOT_IDENTITY += ("budget.", "keep.", "hardware.", "expect.", "evaluate.ablation")
"""Keys that may change when a run is continued: where, how fast and how far it runs, not what its rows are."""
_MEASURING = ("evaluate.max_tokens", "evaluate.weights.", "evaluate.drift_")
"""Keys that say how held-out rows are measured, not which prompts are held out."""
_GATES = ("evaluate.gate_",)
"""Keys that say which models an earlier round has handed on."""
_TRAINING = ("models.base", "sft.", "reward.", *(f"preference.{key}" for key in TUNING))
"""Keys that say what is trained in a round, when its datasets are there."""


def flatten(config: Any) -> dict[str, Any]:
    """Every setting, of a run or of a group, by its dotted key, in the order of the file; the entries of a dict count as settings."""
    return dict(_flat(dataclasses.asdict(config), ""))


def identity(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what a run's rows are: all but how, where and how far it runs."""
    return {key: value for key, value in _flat(_anywhere(config), "") if not key.startswith(_NOT_IDENTITY)}


def dataset_settings(config: RunConfig, number: int) -> dict[str, Any]:
    """Those of `identity` that the datasets of a round follow from, and that their card tells: of training only what
    made the models that an earlier round has trained."""
    apart = _MEASURING if number else (*_MEASURING, *_GATES, *_TRAINING)
    # Which scores stand in which column; where they are the usual ones the card need not say so.
    kept = () if config.reward.outputs == OUTPUTS else ("reward.outputs.",)
    told = identity(config).items()
    return {key: value for key, value in told if key.startswith(kept) or not key.startswith(apart)}


def fingerprint(obj: Any) -> str:
    """16 hex digits that name a value: SHA-256 of its canonical JSON. Dataclasses count as their fields."""
    plain = dataclasses.asdict(obj) if dataclasses.is_dataclass(obj) else obj
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_yaml(config: RunConfig) -> str:
    """The whole config as YAML text that `from_yaml` reads back to an equal one."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def dataset_yaml(config: RunConfig, number: int) -> str:
    """`dataset_settings` as YAML text; `from_yaml` reads it back to a config that makes the same datasets, once the
    addresses of its servers are put in."""
    keys = set(dataset_settings(config, number))
    return yaml.safe_dump(_kept(_anywhere(config), keys, ""), sort_keys=False)


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that looks most like the word."""
    return difflib.get_close_matches(word, list(choices), n=1, cutoff=0.0)[0]


def _anywhere(config: RunConfig) -> dict[str, Any]:
    """The settings as a tree, without the addresses that stand in keys."""
    tree = dataclasses.asdict(config)
    tree["generate"]["others"] = without_addresses(config.generate.others)
    return tree


def _flat(tree: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _kept(tree: dict, keys: set[str], prefix: str) -> dict:
    """The part of a tree of settings whose dotted keys are among `keys`."""
    kept = {}
    for key, value in tree.items():
        if f"{prefix}{key}" in keys:
            kept[key] = value
        elif isinstance(value, dict) and (below := _kept(value, keys, f"{prefix}{key}.")):
            kept[key] = below
    return kept
