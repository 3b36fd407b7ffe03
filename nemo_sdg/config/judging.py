"""Whether a run has a judge, and who it is: the settings of several groups decide it together."""

from __future__ import annotations

from nemo_sdg.config.settings import Endpoint, Judge, RunConfig
from nemo_sdg.errors import ConfigError


def checks_responses(config: RunConfig) -> bool:
    """Whether there are checks on responses: they come with the prompts of a brief, or with the user's own."""
    return config.select.checks and (config.data.synthesis.brief is not None or config.data.checks)


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


def check_judge(config: RunConfig) -> None:
    """Raises ConfigError: there are two judges, or settings about checks that nothing would come of."""
    folder, brief = config.models.judge, config.data.synthesis.brief
    if folder is not None and config.judge.backend == "endpoint":
        way_out = "set one of them: models.judge=null, or judge.backend=local"
        raise ConfigError("there are two judges", where="models.judge", found=f"{folder} and a server", way_out=way_out)
    if folder is not None and folder.startswith(("http://", "https://")):
        way_out = "set judge.backend=endpoint and judge.endpoint.url, and models.judge=null"
        raise ConfigError("a server is no checkpoint", where="models.judge", expected="a folder", way_out=way_out)
    if brief is not None and config.judge.language != Judge().language:
        way_out = "leave it out: questions are asked in the language of the brief"
        found = config.judge.language
        raise ConfigError("the brief has a language of its own", where="judge.language", found=found, way_out=way_out)
    if brief is not None and config.data.checks and not config.data.synthesis.own_prompts:
        way_out = "set data.synthesis.own_prompts=true to take them too, or data.checks=false"
        raise ConfigError("no row of data.prompts is read beside the brief", where="data.checks", way_out=way_out)
