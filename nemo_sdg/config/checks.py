"""What a setting may be. One place, so that a value which passes here is not questioned again."""

from __future__ import annotations

import math
from typing import Any, Callable, Mapping

from nemo_sdg.config.endpoints import check_endpoint, check_others
from nemo_sdg.config.evaluating import RULES as EVALUATING, check_evaluate
from nemo_sdg.config.hardware import RULES as HARDWARE
from nemo_sdg.config.judging import check_judge
from nemo_sdg.config.keeping import RULES as KEEPING
from nemo_sdg.config.lessons import check_lessons
from nemo_sdg.config.lora import TARGETS
from nemo_sdg.config.preferring import check_preference
from nemo_sdg.config.rewarding import OBJECTIVES
from nemo_sdg.config.selection import ATTRIBUTES
from nemo_sdg.config.settings import RunConfig
from nemo_sdg.config.starting import check_start
from nemo_sdg.config.stopping import STOPPING
from nemo_sdg.config.synthesis import PROMPT_KINDS, Synthesis
from nemo_sdg.config.training import Training
from nemo_sdg.config.values import flatten, nearest
from nemo_sdg.errors import ConfigError

Rule = tuple[str, Callable[[Any], bool]]

_AT_LEAST_1: Rule = ("a whole number of at least 1", lambda x: x >= 1)
_AT_LEAST_0: Rule = ("a number of at least 0", lambda x: x >= 0)
_BELOW_1: Rule = ("a number from 0 up to, not including, 1", lambda x: 0 <= x < 1)


def _one_of(*names: str) -> Rule:
    return "one of " + ", ".join(names), lambda x: x in names


_TRAINING: dict[str, Rule] = {
    "start_from": _one_of("base", "latest"),
    "steps": _AT_LEAST_1,
    "global_batch_size": _AT_LEAST_1,
    "micro_batch_size": _AT_LEAST_1,
    "max_length": ("a whole number of at least 2", lambda x: x >= 2),
    "packed_sequence_size": _AT_LEAST_1,
    "learning_rate": ("a number above 0", lambda x: x > 0),
    "warmup_steps": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "beta1": _BELOW_1,
    "beta2": _BELOW_1,
    "clip_grad": _AT_LEAST_0,
    "restart_every": _AT_LEAST_1,
    "validate_every": _AT_LEAST_1,
    "keep_last": _AT_LEAST_1,
    "lora.rank": _AT_LEAST_1,
    "lora.alpha": ("a number above 0", lambda x: x > 0),
    "lora.targets": ("one or more of " + ", ".join(TARGETS), lambda x: bool(x) and set(x) <= set(TARGETS)),
}

_SIZES = ("topology.tp", "topology.pp", "topology.dp")
_ENDPOINT: dict[str, Rule] = {
    "endpoint.concurrency": _AT_LEAST_1,
    "endpoint.timeout_s": ("a number above 0", lambda x: x > 0),
    "endpoint.retries": _AT_LEAST_0,
}

RULES: dict[str, Rule] = {
    "models.dtype": _one_of("fp64", "fp32", "bf16"),
    "models.spec": _one_of("auto", "local", "te"),
    "models.placement": _one_of("in_turn", "together", "split"),
    "topology.tp": _AT_LEAST_1,
    "topology.pp": _AT_LEAST_1,
    "topology.dp": _AT_LEAST_1,
    "topology.first_stage_layers": _AT_LEAST_1,
    "topology.last_stage_layers": _AT_LEAST_1,
    "topology.virtual_stages": _AT_LEAST_1,
    "generate.backend": _one_of("local", "endpoint"),
    "generate.samples": _AT_LEAST_1,
    "generate.max_tokens": _AT_LEAST_1,
    "generate.min_tokens": _AT_LEAST_0,
    "generate.temperature": _AT_LEAST_0,
    "generate.top_p": ("a number above 0 and up to 1", lambda x: 0 < x <= 1),
    "generate.top_k": _AT_LEAST_0,
    "generate.min_p": ("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "generate.repetition_penalty": ("a number above 0", lambda x: x > 0),
    "generate.stop": ("texts that are not empty", lambda x: all(isinstance(text, str) and text for text in x)),
    "generate.slots": _AT_LEAST_1,
    "generate.prefill_tokens": ("a multiple of 64, 64 at least", lambda x: x >= 64 and x % 64 == 0),
    "generate.kv_cache_bytes": _AT_LEAST_1,
    "generate.group_size": _AT_LEAST_1,
    "score.backend": _one_of("local", "endpoint", "hf"),
    "score.pack_tokens": _AT_LEAST_1,
    "judge.backend": _one_of("local", "endpoint"),
    "judge.max_tokens": _AT_LEAST_1,
    "judge.language": ("a code such as en or ja", lambda x: bool(x.strip())),
    **{f"{phase}.{key}": _AT_LEAST_1 for phase in ("generate", "score") for key in _SIZES},
    **{f"{group}.{key}": rule for group in ("generate", "score", "judge") for key, rule in _ENDPOINT.items()},
    "select.per_prompt": _AT_LEAST_1,
    "select.target": _AT_LEAST_1,
    "revise.passes": _AT_LEAST_0,
    "revise.margin": ("a number above 0", lambda x: x > 0),
    "revise.samples": _AT_LEAST_1,
    "budget.candidates": _AT_LEAST_1,
    "budget.tokens": _AT_LEAST_1,
    "budget.hours": ("a number above 0", lambda x: x > 0),
    "select.percentile": ("a number from 0 to 100", lambda x: 0 <= x <= 100),
    "select.near_duplicates": ("a number from 0.3 to 1", lambda x: 0.3 <= x <= 1),
    "select.shingle": _AT_LEAST_1,
    "select.decontaminate": ("paths that are not empty", lambda x: all(isinstance(path, str) and path for path in x)),
    "select.ngram": _AT_LEAST_1,
    "select.pii": ('one of "off" (with quotes in YAML), drop, redact', lambda x: x in ("off", "drop", "redact")),
    "select.pii_engine": _one_of("rules", "presidio"),
    "select.pii_model": ("a name", lambda x: bool(x.strip())),
    "select.maximum_copies": ("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "data.prompts_per_round": _AT_LEAST_1,
    "data.validation_share": _BELOW_1,
    "data.licence": ("a name", lambda x: bool(x.strip())),
    "preference.judge": _one_of("reward", "llm"),
    "preference.margin": _AT_LEAST_0,
    "preference.per_prompt": _AT_LEAST_1,
    "data.synthesis.topics": _AT_LEAST_0,
    "data.synthesis.per_ask": _AT_LEAST_1,
    "data.synthesis.turns": _AT_LEAST_1,
    "data.synthesis.piece_words": _AT_LEAST_1,
    "data.synthesis.max_tokens": _AT_LEAST_1,
    **EVALUATING,
    "reward.objective": _one_of(*OBJECTIVES),
    "run.rounds": _AT_LEAST_1,
    "run.seed": _AT_LEAST_0,
    "run.timeout_s": _AT_LEAST_1,
    "run.threads": _AT_LEAST_1,
    **STOPPING,
    "run.wandb": ("a name", lambda x: bool(x.strip())),
    **{f"{kind}.{key}": rule for kind in ("sft", "reward", "preference") for key, rule in _TRAINING.items()},
    "reward.start_from": _one_of("base", "latest", "policy"),
    "preference.start_from": _one_of("sft", "base", "latest"),
    "preference.objective": _one_of("dpo", "rpo"),
    "preference.beta": ("a number above 0", lambda x: x > 0),
    "preference.eta": ("a number above 0", lambda x: x > 0),
    "preference.sft_weight": _AT_LEAST_0,
    "preference.iterations": _AT_LEAST_1,
    **HARDWARE,
    **KEEPING,
}


def validate(config: RunConfig) -> RunConfig:
    """Returns the config when every value is allowed; raises ConfigError naming the first key that is not.

    A key whose default is null may be null; all others were typed before.
    """
    _hold(flatten(config))
    if config.generate.min_tokens > config.generate.max_tokens:
        raise ConfigError(
            "no response could be long enough", where="generate.min_tokens", found=config.generate.min_tokens,
            expected=f"at most generate.max_tokens = {config.generate.max_tokens}",
        )  # fmt: skip
    for group in ("generate", "score", "judge"):
        settings = getattr(config, group)
        check_endpoint(settings.endpoint, f"{group}.endpoint", used=settings.backend == "endpoint")
    check_others(config.generate)
    _select(config)
    _weights(config)
    _synthesis(config.data.synthesis)
    check_lessons(config)
    _backends(config)
    check_judge(config)
    check_start(config)
    check_preference(config)
    check_evaluate(config.evaluate, config.sft.enabled)
    if config.topology.sequence_parallel and config.topology.tp == 1:
        raise ConfigError(
            "there is nothing to shard over with one tensor-parallel rank",
            where="topology.sequence_parallel",
            found="tp=1",
            way_out="set topology.tp to 2 or more, or topology.sequence_parallel=false",
        )
    for key in ("first_stage_layers", "last_stage_layers"):
        if getattr(config.topology, key) is not None and config.topology.pp == 1:
            raise ConfigError(
                "one pipeline stage holds all layers",
                where=f"topology.{key}",
                found="pp=1",
                way_out=f"set topology.pp to 2 or more, or topology.{key}=null",
            )
    if config.topology.virtual_stages > 1 and config.topology.pp == 1:
        raise ConfigError(
            "one pipeline stage has nobody to take turns with", where="topology.virtual_stages",
            found=f"{config.topology.virtual_stages} with pp=1", expected="1",
            way_out="set topology.pp to 2 or more, or topology.virtual_stages=1",
        )  # fmt: skip
    return config


def validate_training(group: str, settings: Training) -> None:
    """Raises ConfigError for a value that the group of a whole run (sft, preference, reward) would not allow."""
    _hold({f"{group}.{key}": value for key, value in flatten(settings).items()})


def _hold(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError("the value is not finite", where=key, found=value, expected="a number")
    for key, (expected, holds) in RULES.items():
        if values.get(key) is not None and not holds(values[key]):
            raise ConfigError("the value is not allowed", where=key, found=values[key], expected=expected)


def _select(config: RunConfig) -> None:
    select = config.select
    for group in ("minimum", "maximum", "weights"):
        _attributes(config, f"select.{group}", getattr(select, group))
    _attributes(config, "evaluate.weights", config.evaluate.weights)
    for name, low in select.minimum.items():
        if low > select.maximum.get(name, math.inf):
            raise ConfigError(
                "the minimum lies above the maximum, so nothing could pass",
                where=f"select.minimum.{name}",
                found=low,
                expected=f"at most select.maximum.{name} = {select.maximum[name]}",
            )
    for column, share in select.balance.items():
        if not 0 < share < 1:
            raise ConfigError(
                "the value is not allowed", where=f"select.balance.{column}", found=share,
                expected="a share above 0 and below 1",
            )  # fmt: skip
    if select.maximum_copies is not None and select.likeness is None:
        raise ConfigError(
            "there is nothing to copy from", where="select.maximum_copies", found=select.maximum_copies,
            expected="null without select.likeness", way_out="set select.likeness to a file of your own rows",
        )  # fmt: skip
    for group in ("select", "evaluate"):
        if not getattr(config, group).weights:
            where = f"{group}.weights"
            raise ConfigError("without weights there is no scalar", where=where, expected="at least one weight")


def _attributes(config: RunConfig, where: str, named: Mapping[str, float]) -> None:
    known = dict.fromkeys((*ATTRIBUTES, *config.reward.outputs))
    for name in named:
        if name not in known:
            way_out = f"the nearest is {nearest(name, known)}; a label of your own stands in reward.outputs"
            raise ConfigError(
                "unknown attribute", where=f"{where}.{name}", found=name, expected="one of " + ", ".join(known),
                way_out=way_out,
            )  # fmt: skip


def _weights(config: RunConfig) -> None:
    for key in ("sft", "labelled", "preference"):
        for path, weight in getattr(config.data, key).items():
            if weight <= 0:
                raise ConfigError(
                    "no row would be taken", where=f"data.{key}", found=f"{path}: {weight:g}",
                    expected="a weight above 0", way_out="leave the file out",
                )  # fmt: skip


def _synthesis(settings: Synthesis) -> None:
    for name, count in settings.kinds.items():
        if name not in PROMPT_KINDS:
            raise ConfigError(
                "unknown kind of prompts", where=f"data.synthesis.kinds.{name}", found=name,
                expected="one of " + ", ".join(PROMPT_KINDS), way_out=f"the nearest is {nearest(name, PROMPT_KINDS)}",
            )  # fmt: skip
        if count < 1 or count != int(count):
            where, expected = f"data.synthesis.kinds.{name}", _AT_LEAST_1[0]
            raise ConfigError("the value is not allowed", where=where, found=count, expected=expected)
    if settings.brief is not None and not settings.kinds:
        way_out = "say how many of which, for example data.synthesis.kinds.open_qa=200"
        raise ConfigError("no kind of prompts is asked for", where="data.synthesis.kinds", way_out=way_out)
    if settings.brief is None and settings.kinds:
        way_out = "set data.synthesis.brief=package:conf/briefs/general.yaml, or a file of your own"
        raise ConfigError("there is no brief to make prompts for", where="data.synthesis.brief", way_out=way_out)


def _backends(config: RunConfig) -> None:
    """What a server or transformers does is not cut over our ranks, and leaves no local model to go on training."""
    for phase, training in (("generate", "sft"), ("generate", "preference"), ("score", "reward")):
        settings, trained = getattr(config, phase), getattr(config, training)
        if settings.backend != "local" and trained.enabled and trained.start_from == "latest":
            raise ConfigError(
                "there is no local model to go on from", where=f"{training}.start_from",
                found=f"latest with {phase}.backend={settings.backend}", expected="base",
                way_out=f"set {training}.start_from=base, or {training}.enabled=false",
            )  # fmt: skip
    for key in ("tp", "pp"):
        if config.score.backend == "hf" and getattr(config.score.topology, key) not in (None, 1):
            raise ConfigError(
                "transformers holds the whole model on each rank", where=f"score.topology.{key}",
                found=getattr(config.score.topology, key), expected="1 or null with score.backend=hf",
            )  # fmt: skip
