"""What a plan says in words: what is trained first, who else is asked, what is sought, which files it counted."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from nemo_sdg import resources
from nemo_sdg.config import RunConfig
from nemo_sdg.config.endpoints import other_server
from nemo_sdg.config.judging import checks_responses, compares, has_judge, judge_backend, judge_endpoint, judge_model
from nemo_sdg.config.starting import begins_with
from nemo_sdg.errors import ConfigError, UserError
from nemo_sdg.parallel.topology import remote
from nemo_sdg.plan.counting import count_rows
from nemo_sdg.records import Prompt, each_row, row_files
from nemo_sdg.stages.target import most_candidates
from nemo_sdg.store.fits import POLICY, REWARD, fits
from nemo_sdg.synthesis import own_checks
from nemo_sdg.synthesis.plans import Plan as Synthesising

_LOOKED_AT = 1000
"""Rows of data.prompts that are parsed for the plan; the stage that reads them all says what stands further below."""
_GUESSED_BYTES = 400
"""Of a prompt, where there is no file to look at."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a round."""

    count: int | None
    """None where there is no file to count."""
    exact: bool
    """Whether they were counted (true) or estimated from the size of the file."""
    mean_bytes: float
    """Of the text of one, by the first rows."""
    notes: list[str]


def first_notes(config: RunConfig) -> list[str]:
    """What is trained before the first round."""
    steps = {"policy": ("models.instruct", config.sft), "reward": ("models.reward", config.reward)}
    return [
        f"{steps[kind][0]} is not set: a {kind} of {config.models.base} is trained first, {steps[kind][1].steps:,} steps"
        for kind in begins_with(config)
    ]


def elsewhere_notes(config: RunConfig) -> list[str]:
    """What others than our ranks hold."""
    servers = [name for name in config.generate.others if other_server(name, config.generate) is not None]
    notes = [f"generate also asks the server at {name}" for name in servers]
    if config.generate.others and config.models.placement != "in_turn":
        notes.append("several generators answer one after the other; their responses are scored when all are there")
    if has_judge(config):
        endpoint, _ = judge_endpoint(config)
        own = judge_model(config) or "the first policy"
        server = f"the server at {endpoint.url}" if judge_backend(config) == "endpoint" else own
        checks = "keep to the brief" if config.data.synthesis.brief is not None else "meet the checks of their prompts"
        asked = [f"whether they {checks}"] if checks_responses(config) else []
        asked += ["which of two is better"] if compares(config) else []
        notes.append(f"the judge is {server} in every round; about responses it is asked {' and '.join(asked)}")
    if config.preference.enabled:
        notes.append(
            "before it is tuned on pairs a policy goes through them once, for the log-probabilities of the reference: its"
            " weights alone are then in memory" + ("; it is what SFT has made" if config.sft.enabled else "")
        )
    trained = {fit.folder for fit in fits(config)}
    for phase, kind in (("generate", POLICY), ("score", REWARD)):
        settings = getattr(config, phase)
        if remote(config, phase):
            notes.append(f"{phase} asks the server at {settings.endpoint.url}: no model of that role is loaded here")
        elif settings.backend == "hf":
            notes.append(f"{phase} loads {config.models.reward} with transformers, whole on each rank: not counted")
        if settings.backend != "local" and kind in trained and config.run.rounds > 1:
            notes.append(f"{phase} stays with {settings.backend} in every round; what a round trains is evaluated")
    return notes


def target_note(config: RunConfig) -> str | None:
    """Before anything runs nobody knows how many candidates pass; the first wave tells."""
    if config.select.target is None:
        return None
    most = [f"{most_candidates(config):,} candidates"]
    most += [f"{limit:,} {name}" for name in ("tokens", "hours") if (limit := getattr(config.budget, name)) is not None]
    return (
        f"{config.select.target:,} rows accepted in each round, wave by wave of what is above, until {' or '.join(most)};"
        " the forecast comes after the first wave"
    )


def not_in_the_time(config: RunConfig, counted: bool) -> list[str]:
    """What a run does that the plan's time leaves out; always something.

    Args:
        counted: whether the prompts of a round are.
    """
    models = {"generate": "generation", "score": "scoring"}
    local = [word for phase, word in models.items() if getattr(config, phase).backend == "local"]
    others = [word for phase, word in models.items() if word not in local]
    told = {
        f"{' and '.join(local)}, whose prompts are not counted": bool(local) and not counted,
        f"{' and '.join(others)} by others": bool(others),
        "loading further generators": bool(config.generate.others),
        "making prompts": bool(config.data.synthesis.kinds),
        "waves after the first": config.select.target is not None,
        "revision": bool(config.revise.passes),
        "judging": has_judge(config),
        "selection": True,
        "waiting for nodes": True,
    }
    return [words for words, left_out in told.items() if left_out]


def _making(config: RunConfig, made: int, files: bool) -> str:
    """What it takes at most until the prompts are there. Raises UserError for a brief that none can be made for."""
    settings, said = config.data.synthesis, f"{made:,} prompts are made for {config.data.synthesis.brief}"
    try:
        questions = Synthesising.load(settings, seed=config.run.seed, round=0).questions()
    except UserError as error:
        if files:
            raise
        return f"{said}; what that takes is not counted: {error}"
    tokens = questions * (settings.max_tokens or config.generate.max_tokens)
    return f"{said}, which takes at most {questions:,} questions and {tokens:,} tokens in answers"


def require_files(config: RunConfig) -> None:
    """Raises ConfigError for a file of rows that is not there, also for one that is read only when all is generated."""
    for key, value in (
        ("data.prompts", config.data.prompts),
        ("data.helpsteer2", config.data.helpsteer2),
        *(("data.sft", path) for path in config.data.sft),
        *(("data.labelled", path) for path in config.data.labelled),
        *(("data.preference", path) for path in config.data.preference),
        *((f"evaluate.{name}", path) for name, path in config.evaluate.files.items()),
        *(("select.decontaminate", path) for path in config.select.decontaminate),
        ("select.likeness", config.select.likeness),
    ):
        if value is None:
            continue
        there = [resources.resolve(value)] if key.startswith("select.") else row_files(value)
        if not all(file.is_file() for file in there):
            raise ConfigError("there is no such file", where=key, found=value, way_out=f"set {key} to a .jsonl file")


def prompts_of(config: RunConfig, files: bool) -> Prompts:
    """The prompts of a round, counted where they are here. Raises UserError for rows and briefs that cannot be used."""
    made = int(sum(config.data.synthesis.kinds.values()))
    if made:
        count = None if config.data.synthesis.own_prompts else made
        return Prompts(count, False, _GUESSED_BYTES, [_making(config, made, files)])
    given, taken = row_files(config.data.prompts), config.data.prompts_per_round
    if not all(file.is_file() for file in given):
        note = f"{config.data.prompts} is not here, so its rows are not counted"
        return Prompts(taken, taken is not None, _GUESSED_BYTES, [note])
    counts = [count_rows(file) for file in given]
    rows, exact = sum(count for count, _ in counts), all(counted for _, counted in counts)
    first = islice(each_row(config.data.prompts, Prompt), _LOOKED_AT)
    usable = [row for _, row in first if isinstance(row, Prompt)]
    texts = [sum(len(turn["content"].encode()) for turn in row.messages) for row in usable]
    mean = sum(texts) / len(texts) if texts else _GUESSED_BYTES
    notes = own_checks.notes(config, usable)
    if taken is None or rows == 0:
        return Prompts(rows, exact, mean, notes)
    return Prompts(taken, True, mean, notes)
