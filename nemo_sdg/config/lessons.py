"""What training asks of the other settings: outputs with names, a policy to start from, rows to validate on."""

from __future__ import annotations

from nemo_sdg.config.rewarding import NAME, RewardTraining
from nemo_sdg.config.selection import NUM_REWARD_OUTPUTS
from nemo_sdg.config.settings import RunConfig
from nemo_sdg.errors import ConfigError

def check_lessons(config: RunConfig) -> None:
    """Raises ConfigError where a fit has not what it needs."""
    _outputs(config.reward)
    reward = config.reward
    if reward.enabled and reward.start_from == "policy" and config.generate.backend != "local" and not config.sft.enabled:
        raise ConfigError(
            "there is no local policy to start from", where="reward.start_from",
            found="policy with generate.backend=endpoint", expected="base or latest",
            way_out="set reward.start_from=base, or sft.enabled=true",
        )  # fmt: skip
    for kind in ("sft", "reward"):
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
