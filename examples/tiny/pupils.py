"""Who answers in the tiny world: pupils of several habits, from tidy to careless.

A teacher's demonstrations, the sloppy ones that Instruct was tuned on, and the responses that HelpSteer2-like rows
rate are all drawn here. What they are worth is not said here: `ratings.py` judges the text alone.
"""

from __future__ import annotations

import random

from world import LETTERS, Task


def spoil(task: Task, rng: random.Random) -> str:
    """A wrong answer of a likely kind: a place off, a letter lost, a carry forgotten.

    Nobody counts below 0, so that who miscounts nothing may be right by chance.
    """
    right = task.answer
    if task.kind == "secret":
        return task.args[0]
    if right.isdigit():
        change = rng.choice((-10, 10, -1, 1, 1, -1, 2)) if len(right) > 1 else rng.choice((-1, 1, 2))
        return str(max(int(right) + change, 0)) if int(right) + change != int(right) else str(int(right) + 1)
    letters = list(right)
    for _ in range(rng.choice((1, 1, 2))):
        way = rng.randrange(3)
        place = rng.randrange(len(letters) - 1) if len(letters) > 1 else 0
        if way == 0:
            letters[place], letters[-1] = letters[-1], letters[place]
        elif way == 1 and len(letters) > 2:
            del letters[place]
        else:
            letters[place] = rng.choice(LETTERS)
    wrong = "".join(letters)
    return wrong if wrong != right else right + rng.choice(LETTERS)


def lazy_error(task: Task) -> str:
    """The mistake that a hurried pupil makes every time."""
    if task.kind in ("add", "total"):
        numbers = [int(number) for number in task.args]
        ones = sum(number % 10 for number in numbers) % 10
        return str(sum(number // 10 for number in numbers) * 10 + ones)  # forgets to carry
    if task.kind == "count":
        return str(max(int(task.answer) - 1, 0))  # overlooks one
    if task.kind == "secret":
        return task.args[0]  # tells it
    if task.kind == "repeat":
        return task.args[0] * 2  # twice, however often was asked
    return task.answer[:-2] + task.answer[-1] if len(task.answer) > 3 else task.answer  # loses a letter


def show(steps: tuple[str, ...] | list[str]) -> str:
    return f"Work: {'; '.join(steps)}.\n" if steps else ""


def tidy(task: Task, rng: random.Random) -> str:
    """Right, with the whole working where there is any."""
    return show(task.steps) + task.answer


def brief(task: Task, rng: random.Random) -> str:
    """Right, and nothing else."""
    return task.answer


def hurried(task: Task, rng: random.Random) -> str:
    return lazy_error(task)


def mistaken(task: Task, rng: random.Random) -> str:
    return spoil(task, rng)


def muddled(task: Task, rng: random.Random) -> str:
    """Shows a working, with a slip in it that the answer inherits."""
    wrong = spoil(task, rng)
    if not task.steps:
        return wrong
    steps = list(task.steps)
    if task.kind == "count":
        steps = [f"{task.args[0]}{place + 1}" for place in range(int(wrong))] or [f"no {task.args[0]}"]
    else:
        steps[-1] = steps[-1].split("=")[0] + "=" + (wrong if task.kind == "total" else wrong[:-1] or "0")
    return show(steps) + wrong


def rambling(task: Task, rng: random.Random) -> str:
    """Talks before it answers, and is right about two times in three."""
    answer = task.answer if rng.random() < 0.67 else spoil(task, rng)
    opening = rng.choice(("Well, let me see.", "Well, um, let me see.", "um, I think.", "Well, I think."))
    return f"{opening}\n{show(task.steps) if rng.random() < 0.3 else ''}{answer}"


def untidy(task: Task, rng: random.Random) -> str:
    """The answer is there or nearly, but not where it should be."""
    answer = task.answer if rng.random() < 0.6 else spoil(task, rng)
    return rng.choice(("I think {0}, maybe", "{0} {0}", "maybe {0}", "{0}\n{0}", "{0}\nWork: maybe")).format(answer)


PUPILS = {
    "tidy": tidy, "brief": brief, "hurried": hurried, "mistaken": mistaken,
    "muddled": muddled, "rambling": rambling, "untidy": untidy,
}  # fmt: skip

CLASSES = {
    # What Base read: mostly right.
    "books": {"tidy": 60, "brief": 25, "mistaken": 10, "muddled": 5},
    # What Instruct was tuned on: a class in a hurry.
    "sloppy": {"tidy": 20, "brief": 22, "hurried": 25, "mistaken": 10, "muddled": 3, "rambling": 10, "untidy": 10},
    # What the HelpSteer2-like rows rate: everything.
    "rated": {"tidy": 22, "brief": 18, "hurried": 14, "mistaken": 18, "muddled": 8, "rambling": 10, "untidy": 10},
}


def respond(task: Task, group: str, rng: random.Random) -> str:
    """A response to `task` by a pupil drawn from `group`."""
    habits = CLASSES[group]
    (habit,) = rng.choices(list(habits), weights=list(habits.values()))
    return PUPILS[habit](task, rng)
