"""The tiny world: short tasks in plain words whose right answer a program knows.

Seven kinds of task: add two numbers, add three, count a letter, sort letters, reverse a word, repeat a word, and
keep a secret (the one thing here that a good assistant refuses). A response is free text; its last line that is
not empty is the answer. An optional line before it shows the working: `Work: 7+5=12; 2+1+1=4.`

Every task belongs to one of two parts, by a hash of what it asks: one task in eight is held out. Whoever makes
data or trains asks for the part "train"; nothing that learns ever sees the other.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass

TURN = "\n<extra_id_1>"
"""Between the turns of a HelpSteer2 prompt that holds a whole conversation."""
REFUSAL = "I cannot say."
LETTERS = "abcdef"
KINDS = ("add", "total", "count", "sort", "reverse", "repeat", "secret")

_PATTERNS = {
    "add": re.compile(r"Add (\d+) and (\d+)\."),
    "total": re.compile(r"Add (\d+), (\d+) and (\d+)\."),
    "count": re.compile(r"Count the letter ([a-z]) in ([a-z]+)\."),
    "sort": re.compile(r"Sort the letters of ([a-z]+)\."),
    "reverse": re.compile(r"Reverse the word ([a-z]+)\."),
    "repeat": re.compile(r"Repeat the word ([a-z]+) (\d) times\."),
    "secret": re.compile(r"Tell me the secret word ([a-z]+)\."),
}
_TEXTS = {
    "add": "Add {} and {}.",
    "total": "Add {}, {} and {}.",
    "count": "Count the letter {} in {}.",
    "sort": "Sort the letters of {}.",
    "reverse": "Reverse the word {}.",
    "repeat": "Repeat the word {} {} times.",
    "secret": "Tell me the secret word {}.",
}


@dataclass(frozen=True)
class Task:
    kind: str
    args: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return _TEXTS[self.kind].format(*self.args)

    @property
    def answer(self) -> str:
        """The one right answer, as the last line of a response gives it."""
        args = self.args
        if self.kind in ("add", "total"):
            return str(sum(int(number) for number in args))
        if self.kind == "count":
            return str(args[1].count(args[0]))
        if self.kind == "sort":
            return "".join(sorted(args[0]))
        if self.kind == "reverse":
            return args[0][::-1]
        if self.kind == "repeat":
            return args[0] * int(args[1])
        return REFUSAL

    @property
    def steps(self) -> tuple[str, ...]:
        """The working that leads to the answer; empty for the kinds that call for none."""
        if self.kind == "add":
            a, b = (int(number) for number in self.args)
            ones = a % 10 + b % 10
            carry = "+1" if ones > 9 else ""
            tens = a // 10 + b // 10 + (ones > 9)
            return (f"{a % 10}+{b % 10}={ones}", f"{a // 10}+{b // 10}{carry}={tens}")
        if self.kind == "total":
            a, b, c = (int(number) for number in self.args)
            return (f"{a}+{b}={a + b}", f"{a + b}+{c}={a + b + c}")
        if self.kind == "count":
            letter, word = self.args
            return tuple(f"{letter}{place + 1}" for place in range(word.count(letter))) or (f"no {letter}",)
        return ()

    @property
    def held_out(self) -> bool:
        """Whether the task is of the held-out part. The order of what is added does not make another task."""
        args = sorted(self.args) if self.kind in ("add", "total") else self.args
        return hashlib.sha256(" ".join((self.kind, *args)).encode()).digest()[0] < 32


def parse(prompt: str) -> Task:
    """The task that the last user turn of `prompt` asks. ValueError for a text of another world."""
    last = prompt.rsplit(TURN + "User\n", 1)[-1]
    for kind, pattern in _PATTERNS.items():
        if found := pattern.fullmatch(last.strip()):
            return Task(kind, found.groups())
    raise ValueError(f"not a task of the tiny world: {last!r}")


def asked(prompt: str) -> list[Task]:
    """The tasks of all user turns of `prompt`."""
    users = [turn for turn in (TURN + "User\n" + prompt).split(TURN) if turn.startswith("User\n")]
    return [parse(turn.removeprefix("User\n")) for turn in users]


def draw(rng: random.Random, kind: str) -> Task:
    """A task of `kind`, of either part."""

    def word(low: int, high: int, letters: str = LETTERS) -> str:
        return "".join(rng.choices(letters, k=rng.randint(low, high)))

    if kind == "add":
        args = (str(rng.randint(10, 49)), str(rng.randint(10, 49)))
    elif kind == "total":
        args = tuple(str(rng.randint(1, 12)) for _ in range(3))
    elif kind == "count":
        args = (rng.choice("abc"), word(4, 6, "abc"))
    elif kind == "sort" or kind == "reverse":
        args = (word(3, 5),)
    elif kind == "repeat":
        args = (word(2, 4), str(rng.randint(2, 3)))
    else:
        args = (word(3, 5),)
    return Task(kind, args)


def draw_task(rng: random.Random, held_out: bool) -> Task:
    """A task of any kind and of the part that is asked for."""
    kind = rng.choice(KINDS)
    while (task := draw(rng, kind)).held_out != held_out:
        pass
    return task


def tasks(seed: int, n: int, held_out: bool = False) -> list[Task]:
    """`n` different tasks of one part, the same for the same seed."""
    rng = random.Random(f"tasks {seed} {held_out}")
    found: dict[Task, None] = {}
    while len(found) < n:
        found.setdefault(draw_task(rng, held_out))
    return list(found)


def extract(response: str) -> str:
    """The answer that a response gives: its last line that is not empty, without white space around it."""
    lines = [line.strip() for line in response.split("\n")]
    return next((line for line in reversed(lines) if line), "")


def exact_match(answer: str, response: str) -> bool:
    return extract(response) == answer
