"""The five HelpSteer attributes of a response in the tiny world, each an integer 0 to 4 with its reason.

correctness   how much of the answer is right
coherence     whether the response has the form that the world expects
complexity    how much of the working is shown
verbosity     how long the response is
helpfulness   whether a reader is served: first a right answer, then its form, then its working
"""

from __future__ import annotations

import re
from typing import NamedTuple

from world import REFUSAL, Task, extract, parse

FILLERS = ("Well", "um", "let me see", "I think", "maybe")
_BARE = re.compile(rf"[a-z]+|\d+|{re.escape(REFUSAL)}")
_WORKING = re.compile(r"Work: [^.]+\.")
_LENGTHS = (10, 22, 34, 48)


class Rating(NamedTuple):
    value: int
    reason: str


def working(response: str) -> list[str]:
    """The steps of the first working line, none if there is none."""
    for line in response.split("\n"):
        if line.startswith("Work:"):
            return [step.strip() for step in line.removeprefix("Work:").strip().rstrip(".").split(";") if step.strip()]
    return []


def correctness(task: Task, response: str) -> Rating:
    given, right = extract(response), task.answer
    if given == right:
        return Rating(4, "the last line is the right answer")
    if re.search(rf"(?<!\w){re.escape(right)}(?!\w)", given):
        return Rating(3, "the right answer stands in the last line, but not alone")
    same = sum(a == b for a, b in zip(given, right)) / max(len(given), len(right), 1)
    if same >= 2 / 3:
        return Rating(2, "at least two thirds of the answer are right")
    if same >= 1 / 3:
        return Rating(1, "at least a third of the answer is right")
    return Rating(0, "the answer is wrong")


def coherence(response: str) -> Rating:
    value, faults = 4, []
    lines = [line.strip() for line in response.split("\n") if line.strip()]
    if not _BARE.fullmatch(extract(response)):
        value, faults = value - 2, faults + ["the last line is not a bare answer"]
    if any(filler in response for filler in FILLERS):
        value, faults = value - 1, faults + ["it rambles"]
    if any(not _WORKING.fullmatch(line) for line in lines[:-1] if line.startswith("Work")):
        value, faults = value - 1, faults + ["the working is not one whole sentence"]
    if len(set(lines)) < len(lines):
        value, faults = value - 1, faults + ["a line stands twice"]
    return Rating(max(value, 0), ", ".join(faults) or "it has the expected form")


def complexity(task: Task, response: str) -> Rating:
    shown, due = working(response), task.steps
    if not shown:
        return Rating(0, "no working is shown")
    right = sum(step in due for step in shown)
    if not due or right == 0:
        return Rating(1, "the working shown does not belong to the task")
    if list(due) != shown:
        return Rating(2, f"{right} of {len(due)} steps are shown and right")
    return Rating(3 if len(due) == 1 else 4, "the whole working is shown and right")


def verbosity(response: str) -> Rating:
    length = len(response.strip())
    return Rating(sum(length > limit for limit in _LENGTHS), f"{length} characters")


def attributes(prompt: str, response: str) -> dict[str, Rating]:
    """The five ratings of a response to the last user turn of `prompt`."""
    task = parse(prompt)
    right, form, depth = correctness(task, response), coherence(response), complexity(task, response)
    if right.value < 3:
        partly = right.value > 0
        helpful = Rating(int(partly), "the answer is partly right" if partly else "the answer is wrong")
    elif right.value == 3 or form.value < 3:
        helpful = Rating(2, "right, but hard to use")
    elif task.steps and depth.value < 3:
        helpful = Rating(3, "right, without the whole working")
    else:
        helpful = Rating(4, "right, in good form" + (", with its working" if task.steps else ""))
    return {
        "helpfulness": helpful,
        "correctness": right,
        "coherence": form,
        "complexity": depth,
        "verbosity": verbosity(response),
    }
