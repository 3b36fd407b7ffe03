"""What preference tuning asks of the other settings: a policy to start from, and pairs."""

from __future__ import annotations

from nemo_sdg.config.settings import RunConfig
from nemo_sdg.errors import ConfigError


def check_preference(config: RunConfig) -> None:
    """Raises ConfigError where the policy is to be tuned and has nothing to start from, or there can be no pairs."""
    settings = config.preference
    if not settings.enabled:
        return
    if config.sft.enabled != (settings.start_from == "sft"):
        if config.sft.enabled:
            what, way_out = "the result of SFT would not be used", "set preference.start_from=sft, or sft.enabled=false"
        else:
            what, way_out = "there is no SFT to go on from", "set preference.start_from=base or latest"
        raise ConfigError(
            what, where="preference.start_from", found=f"{settings.start_from} with sft.enabled={_word(config.sft.enabled)}",
            way_out=way_out,
        )  # fmt: skip
    responses = config.generate.samples + sum(config.generate.others.values())
    if responses < 2 and not config.revise.passes and not config.data.preference:
        raise ConfigError(
            "there is nothing to make pairs of", where="preference.enabled", found="one response to each prompt",
            expected="two at least", way_out="set generate.samples=2 or more, or data.preference to a file of pairs",
        )  # fmt: skip


def _word(value: bool) -> str:
    return str(value).lower()
