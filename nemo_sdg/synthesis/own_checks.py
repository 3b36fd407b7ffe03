"""Whether the checks in the rows of data.prompts and the settings fit each other, told before anything is generated."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_sdg.config import RunConfig
from nemo_sdg.config.judging import checks_responses
from nemo_sdg.errors import RowError
from nemo_sdg.records import Prompt
from nemo_sdg.synthesis.requirements import Questions, checks_of


def notes(config: RunConfig, rows: Sequence[Prompt]) -> list[str]:
    """What a user should know of the checks in these rows of data.prompts.

    With a brief there is nothing to tell: checks are looked at, and those of the brief are there in any case.

    Raises:
        ConfigError: the judge cannot be asked in the language of the settings.
        RowError: in a strict run, a row brings checks that are none.
    """
    if config.data.synthesis.brief is not None or not config.select.checks:
        return []
    brought = [row for row in rows if row.extra.get("checks")]
    file, read = config.data.prompts, f"of {len(rows):,} rows read"
    if not checks_responses(config):
        told = f"{len(brought):,} {read} of {file} bring checks, which nobody looks at: set data.checks=true to hold"
        told += " responses to them, or select.checks=false to leave them alone"
        return [told] if brought else []
    Questions.load(config)  # asked when all is generated, and checked now
    if not brought:
        return [f"data.checks=true, but none {read} of {file} brings a list in its column checks"]
    wrong = [error for row in brought if (error := _wrong(row)) is not None]
    if wrong and config.run.strict:
        raise wrong[0]
    told = f"{len(wrong):,} {read} of {file} bring checks that cannot be used; responses to them will be set aside"
    return [f"{told}; {wrong[0]}"] if wrong else []


def _wrong(row: Prompt) -> RowError | None:
    try:
        checks_of(row.extra, f"row {row.id}")
    except RowError as error:
        return error
    return None
