"""What training asks of the settings together: whole micro batches, outputs with names, a start, rows to validate on."""

from __future__ import annotations

import math

from nemo_sdg.config.rewarding import NAME, RewardTraining
from nemo_sdg.config.selection import NUM_REWARD_OUTPUTS
from nemo_sdg.config.settings import RunConfig
from nemo_sdg.errors import ConfigError

def check_lessons(config: RunConfig) -> None:
    """Raises ConfigError where a fit has not what it needs."""
    _outputs(config.reward)
    _batches(config)
    reward, trained = config.reward, config.sft.enabled or config.preference.enabled
    if reward.enabled and reward.start_from == "policy" and config.generate.backend != "local" and not trained:
        raise ConfigError(
            "there is no local policy to start from", where="reward.start_from",
            found="policy with generate.backend=endpoint", expected="base or latest",
            way_out="set reward.start_from=base, or sft.enabled=true",
        )  # fmt: skip
    for kind in ("sft", "preference", "reward"):
        settings = getattr(config, kind)
        labelled = kind == "reward" and not reward.pairs and config.evaluate.helpsteer2 is not None
        if not settings.enabled or not settings.validate_every or settings.validation is not None:
            continue
        if not config.data.validation_share and not labelled:
            raise ConfigError(
                "there is nothing to validate on", where=f"{kind}.validate_every", found=settings.validate_every,
                expected="held-out rows", way_out=f"set data.validation_share=0.05, or {kind}.validation to a file",
            )  # fmt: skip


def _outputs(settings: RewardTraining) -> None:
    """Raises ConfigError unless each name has an output of its own, and what is compared is one of them."""
    taken: dict[int, str] = {}
    for name, slot in settings.outputs.items():
        where = f"reward.outputs.{name}"
        if not NAME.fullmatch(name):
            raise ConfigError("the name cannot be a label's", where=where, found=name, expected="a-z, 0-9 and _, 64 at most")
        if slot not in range(NUM_REWARD_OUTPUTS):
            raise ConfigError("the reward model has no such output", where=where, found=slot, expected="0 to 8")
        if slot in taken:
            raise ConfigError("two names share an output", where=where, found=f"{slot}, as {taken[slot]}",
                              expected="one that is free")  # fmt: skip
        taken[slot] = name
    if not settings.outputs:
        raise ConfigError("no output would be trained", where="reward.outputs", expected="at least one name")
    if settings.compare not in settings.outputs:
        raise ConfigError(
            "what is compared is no output of the reward model", where="reward.compare", found=settings.compare,
            expected="one of " + ", ".join(settings.outputs), way_out="name it in reward.outputs",
        )  # fmt: skip


def _batches(config: RunConfig) -> None:
    topology = config.topology
    factors = {"topology.dp": topology.dp or 1, "topology.pp": topology.pp if topology.virtual_stages > 1 else 1}
    for kind in ("sft", "reward", *(["preference"] if config.preference.enabled else [])):
        settings = getattr(config, kind)
        unit = settings.micro_batch_size * math.prod(factors.values())
        if settings.global_batch_size % unit:
            shared = "".join(f" x {key}" for key, factor in factors.items() if factor > 1)
            raise ConfigError(
                "the global batch cannot be cut into whole micro batches",
                where=f"{kind}.global_batch_size",
                found=settings.global_batch_size,
                expected=f"a multiple of {kind}.micro_batch_size{shared} = {unit}",
            )
        pairs = kind == "preference" or (kind == "reward" and settings.pairs)
        longest = settings.max_length * (2 if pairs else 1)
        if settings.packed_sequence_size is not None and settings.packed_sequence_size < longest:
            raise ConfigError(
                "the longest sample does not fit into a packed row", where=f"{kind}.packed_sequence_size",
                found=settings.packed_sequence_size,
                expected=f"at least {'twice ' if pairs else ''}{kind}.max_length = {settings.max_length}",
                way_out=f"set {kind}.packed_sequence_size={longest}, or a smaller {kind}.max_length",
            )  # fmt: skip
