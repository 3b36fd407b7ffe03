"""Whether a run has a judge, and who it is: the settings of several groups decide it together."""

from __future__ import annotations

from nemo_sdg.config.settings import Endpoint, RunConfig


def checks_responses(config: RunConfig) -> bool:
    """Whether there are checks on responses: they come with the prompts of a brief."""
    return config.select.checks and config.data.synthesis.brief is not None


def compares(config: RunConfig) -> bool:
    """Whether the judge is asked which of two responses is better."""
    return config.preference.judge == "llm"


def has_judge(config: RunConfig) -> bool:
    """Whether anybody is asked about responses."""
    return checks_responses(config) or compares(config)


def judge_backend(config: RunConfig) -> str:
    """local or endpoint."""
    if config.judge.backend == "endpoint":
        return "endpoint"
    return "local" if config.models.judge is not None else config.generate.backend


def judge_model(config: RunConfig) -> str | None:
    """The folder of a local judge; None is the first policy, where the run trains that itself."""
    return config.models.judge or config.models.instruct


def judge_endpoint(config: RunConfig) -> tuple[Endpoint, str]:
    """The server of a judge that is one, and the setting that names it."""
    group = "judge" if config.judge.backend == "endpoint" else "generate"
    return getattr(config, group).endpoint, f"{group}.endpoint"
