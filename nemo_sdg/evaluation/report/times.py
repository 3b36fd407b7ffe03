"""How long a run took and what it made in that time, from logs/events.jsonl.

An event stands at the end of a stage, or where it stopped, and says how many seconds the stage has taken; a run of an
earlier version does not say it, and then a stage has begun where the one before it ended. What a kill threw away has no
event. Nobody has sealed this file: what is not of our form is left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Span = tuple[float, float]
"""Begin and end, seconds since 1970."""
MAKING = ("prompts", "revise", "generate", "score", "judge", "select")
"""The stages that accepted rows come from."""


@dataclass
class StageTime:
    """One stage of one round, over all its waves, revisions and starts."""

    round: int
    stage: str
    spans: list[Span] = field(default_factory=list)
    rows: int = 0
    """That it kept."""
    tokens: int = 0
    """That it generated, or trained on."""
    stopped: bool = False
    """Whether it did not come to its end when it was last at work."""

    @property
    def seconds(self) -> float:
        return union(self.spans)


@dataclass
class Times:
    stages: list[StageTime]
    began: float
    ended: float
    """Of the last stage that has ended or stopped."""
    told: bool = True
    """Whether every stage has said how long it took."""

    @property
    def wall(self) -> float:
        """Seconds from the begin of the first stage to the end of the last."""
        return self.ended - self.began

    @property
    def idle(self) -> float | None:
        """The share of `wall` in which no stage was at work; None where it is not known."""
        busy = union(span for stage in self.stages for span in stage.spans)
        return None if self.wall <= 0 or not self.told else max(0.0, 1 - busy / self.wall)

    @property
    def tokens(self) -> int:
        """Generated."""
        return sum(stage.tokens for stage in self.stages if stage.stage == "generate")

    def accepted_per_hour(self, round_: int | None = None) -> float | None:
        """Accepted rows over the hours in which they were made: prompts, answers, scores, verdicts, selection."""
        some = [stage for stage in self.stages if round_ in (None, stage.round) and stage.stage in MAKING]
        kept = sum(stage.rows for stage in some if stage.stage == "select")
        seconds = union(span for stage in some for span in stage.spans)
        return 3600 * kept / seconds if kept and seconds > 0 else None


def read_times(folder: Path) -> Times | None:
    """Of the run in a folder; None where there is no event. A line that is torn, or no event of ours, is left out."""
    stages: dict[tuple[int, str], StageTime] = {}
    counted: dict[tuple[Any, ...], dict[str, Any]] = {}
    trained: dict[tuple[int, str], int] = defaultdict(int)
    last: float | None = None
    told = True
    for event in _events(folder / "logs" / "events.jsonl"):
        end, name, number = event["time"], event.get("stage"), event.get("round", 0)
        wave, revision = event.get("wave", 0), event.get("revision", 0)
        if not all(map(_whole, (number, wave, revision))):
            continue
        apart = "/." in str(event.get("folder", ""))  # of an ablation, which hands on nothing
        if event["event"] == "trained" and _whole(event.get("tokens")) and not apart:
            trained[number, "train"] += event["tokens"]
        ended = event["event"] == "stage" and isinstance(event.get("totals"), dict)
        if isinstance(name, str) and (ended or event["event"] == "stopped"):
            seconds = event.get("seconds")
            known = _moment(seconds) and seconds <= end
            told = told and known
            begin = end - seconds if known else (end if last is None else last)
            place = stages.setdefault((number, name), StageTime(number, name))
            place.spans.append((min(begin, end), end))
            place.stopped = not ended
            if ended:
                counted[number, name, wave, revision] = event["totals"]
        if event["event"] != "trained":
            last = end
    for (number, name, *_), totals in counted.items():
        kept, tokens = totals.get("kept"), totals.get("tokens")
        # Selection is of all waves so far, so the last event of a round tells it.
        stages[number, name].rows = (0 if name == "select" else stages[number, name].rows) + (
            kept if _whole(kept) else 0
        )
        stages[number, name].tokens += tokens if _whole(tokens) else 0
    for place, tokens in trained.items():
        if place in stages:
            stages[place].tokens = tokens
    if not stages:
        return None
    spans = [span for stage in stages.values() for span in stage.spans]
    return Times(list(stages.values()), min(begin for begin, _ in spans), max(end for _, end in spans), told)


def union(spans: Iterable[Span]) -> float:
    """Seconds that lie in at least one of the spans."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _moment(value: Any) -> bool:
    """Whether it is a number of seconds that a calendar has, up to the year 9999."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 253_402_300_800


def _events(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line of a run that is at work, or was killed
        if (
            isinstance(event, dict)
            and _moment(event.get("time"))
            and isinstance(event.get("event"), str)
        ):
            yield event
