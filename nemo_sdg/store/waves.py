"""The parts of a round: waves of candidates, and in each wave the revisions of what nearly passed.

Without `select.target` a round is one wave. Each part has prompts/, responses/ and scored/ of its own, and judged/ where
responses are checked; decisions/ are of all parts together.

    round-0/                       wave 0
    round-0/revise-1/              what nearly passed in wave 0, revised once
    round-0/wave-1/                more candidates, because too few were accepted
    round-0/wave-1/revise-1/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_sdg.config import RunConfig
from nemo_sdg.config.judging import checks_responses, compares
from nemo_sdg.errors import ConfigError

START = "start"
"""The folder of what a run trains before its first round."""
FOLDER = re.compile(r"(wave|revise)-\d+")
"""Names of the folders of parts."""
OF_PARTS = {"prompts": None, "revise": None, "generate": "prompts", "score": "responses", "judge": "scored"}
"""The stages that are of a part, each with the folder that it reads; `revise` reads that of `candidates`."""


@dataclass(frozen=True)
class Part:
    wave: int = 0
    revision: int = 0
    """Pass of revision, from 1; 0 is the wave's own candidates."""

    def folder(self, round_folder: Path) -> Path:
        wave = round_folder / f"wave-{self.wave}" if self.wave else round_folder
        return wave / f"revise-{self.revision}" if self.revision else wave

    @property
    def provenance(self) -> dict[str, int]:
        """What rows say of it; those of the first wave say nothing."""
        said = {"wave": self.wave, "revision": self.revision}
        return {name: number for name, number in said.items() if number}

    @classmethod
    def of(cls, provenance: Mapping[str, Any]) -> Part:
        """Where a row was made, by what it says of itself."""
        return cls(provenance.get("wave", 0), provenance.get("revision", 0))

    @property
    def title(self) -> str:
        wave = f"wave {self.wave}" if self.wave else ""
        return ", ".join(filter(None, (wave, f"revision {self.revision}" if self.revision else "")))


def part_folders(config: RunConfig) -> tuple[str, ...]:
    """The folders that each part of a round has, in the order in which they are filled."""
    return ("prompts", "responses", "scored", *(["judged"] if checks_responses(config) else []))


def round_folders(config: RunConfig) -> tuple[str, ...]:
    """The folders with rows that a round has after all its parts."""
    return ("decisions", *(["compared"] if compares(config) else []))


def candidates(config: RunConfig) -> str:
    """The folder whose rows are decided on, revised and traced."""
    return part_folders(config)[-1]


def wave_parts(wave: int, passes: int) -> list[Part]:
    """The parts of one wave in their order."""
    return [Part(wave, revision) for revision in range(passes + 1)]


def begun_parts(round_folder: Path, passes: int) -> Iterator[Part]:
    """The parts of a round that there are, finished or not, in order."""
    wave = 0
    while Part(wave).folder(round_folder).is_dir():
        yield from (part for part in wave_parts(wave, passes) if part.folder(round_folder).is_dir())
        wave += 1


def ready_parts(stage: str, config: RunConfig, round_folder: Path) -> list[Part]:
    """The parts of a round that a stage which makes candidates can do: those that were begun and have finished rows in
    the folder that it reads, if it reads any. The first one is always among them, so that it says what is missing.

    `prompts` and `revise` go by waves: the prompts of a revision come from the versions before it.
    Raises ConfigError where nothing is to be revised.
    """
    if stage == "revise" and not config.revise.passes:
        way_out = "set it to 1 or more"
        raise ConfigError("nothing goes back to be revised", where="revise.passes", found=0, way_out=way_out)
    by_waves, folder = stage in ("prompts", "revise"), candidates(config) if stage == "revise" else OF_PARTS[stage]

    def ready(part: Part) -> bool:
        if part.revision and by_waves:
            return False
        return folder is None or (part.folder(round_folder) / folder / "SUCCESS.json").is_file()

    begun = begun_parts(round_folder, config.revise.passes)
    return [Part(), *(part for part in begun if part != Part() and ready(part))]
