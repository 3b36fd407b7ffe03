"""The data files of the tiny world, the same bytes every time.

    prompts.jsonl                 training prompts             {"id", "prompt"}
    heldout.jsonl                 held-out prompts             {"id", "prompt", "answer"}
    helpsteer2_train.jsonl        rated responses, training    the schema of nvidia/HelpSteer2
    helpsteer2_validation.jsonl   rated responses, held out    the same
    rewardbench.jsonl             pairs, held out              the schema of allenai/reward-bench
    instructions.jsonl            held-out prompts             {"id", "prompt", "checks"}

No prompt stands in two files, and a held-out file holds tasks of the held-out part only.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pupils import PUPILS, respond
from ratings import attributes
from world import REFUSAL, TURN, Task, tasks

PROMPTS, HELD_OUT, INSTRUCTIONS = 2048, 400, 60
RATED, RATED_HELD_OUT = 1500, 300
"""Prompts of the HelpSteer2-like files; each has two rows."""
MULTI_TURN = 0.2

STRINGS = ("count", "sort", "reverse", "repeat")
NUMBERS = ("add", "total")
SUBSETS: dict[str, tuple[tuple[str, ...], str, str]] = {
    # subset: (kinds of task, who gives the chosen response, who gives the rejected one)
    "alpacaeval-easy": (STRINGS + NUMBERS, "tidy", "mistaken"),
    "alpacaeval-length": (STRINGS, "brief", "rambling"),
    "alpacaeval-hard": (STRINGS + NUMBERS, "brief", "mistaken"),
    "mt-bench-easy": (STRINGS + NUMBERS, "tidy", "untidy"),
    "mt-bench-med": (STRINGS + NUMBERS, "brief", "untidy"),
    "mt-bench-hard": (NUMBERS, "brief", "hurried"),
    "llmbar-natural": (NUMBERS, "brief", "muddled"),
    "llmbar-adver-neighbor": (("repeat", "reverse"), "brief", "mistaken"),
    "llmbar-adver-GPTInst": (("count",), "brief", "muddled"),
    "llmbar-adver-GPTOut": (NUMBERS, "tidy", "rambling"),
    "llmbar-adver-manual": (("sort",), "brief", "mistaken"),
    "refusals-dangerous": (("secret",), "tidy", "hurried"),
    "refusals-offensive": (("secret",), "tidy", "mistaken"),
    "xstest-should-refuse": (("secret",), "tidy", "hurried"),
    "xstest-should-respond": (STRINGS + NUMBERS, "tidy", "refusing"),
    "donotanswer": (("secret",), "tidy", "hurried"),
    "math-prm": (NUMBERS, "tidy", "muddled"),
    "hep-cpp": (("sort",), "tidy", "mistaken"),
    "hep-go": (("count",), "tidy", "mistaken"),
    "hep-java": (("reverse",), "tidy", "mistaken"),
    "hep-js": (("repeat",), "tidy", "mistaken"),
    "hep-python": (STRINGS, "tidy", "mistaken"),
    "hep-rust": (STRINGS, "tidy", "hurried"),
}
"""The 23 subsets of RewardBench, each filled with the nearest thing in this world."""
PER_SUBSET = 6


def conversation(rng: random.Random, task: Task, earlier: Task | None) -> str:
    """The prompt text of `task`, after an exchange about an earlier one if there is one."""
    if earlier is None:
        return task.prompt
    answer = PUPILS[rng.choice(("tidy", "brief"))](earlier, rng)
    return f"{earlier.prompt}{TURN}Assistant\n{answer}{TURN}User\n{task.prompt}"


def rated_rows(rng: random.Random, parts: list[Task], spare: list[Task]) -> list[dict[str, Any]]:
    """Two rated responses to each task, next to each other; `spare` are the tasks of earlier turns."""
    rows = []
    for task in parts:
        prompt = conversation(rng, task, rng.choice(spare) if rng.random() < MULTI_TURN else None)
        for _ in range(2):
            response = respond(task, "rated", rng)
            values = {name: rating.value for name, rating in attributes(prompt, response).items()}
            rows.append({"prompt": prompt, "response": response, **values})
    return rows


def bench_rows(rng: random.Random, drawn: list[Task]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    pools = {kind: [task for task in drawn if task.kind == kind] for kinds, *_ in SUBSETS.values() for kind in kinds}
    for subset, (kinds, good, bad) in SUBSETS.items():
        made = 0
        while made < PER_SUBSET:
            task = pools[rng.choice(kinds)].pop()
            chosen, rejected = PUPILS[good](task, rng), REFUSAL if bad == "refusing" else PUPILS[bad](task, rng)
            worth = [attributes(task.prompt, text)["helpfulness"].value for text in (chosen, rejected)]
            if worth[0] <= worth[1]:
                continue  # a careless pupil may be right by chance
            rows.append({
                "prompt": task.prompt, "chosen": chosen, "chosen_model": good, "rejected": rejected,
                "rejected_model": bad, "subset": subset, "id": len(rows),
            })  # fmt: skip
            made += 1
    return rows


def instruction_rows(parts: list[Task]) -> list[dict[str, Any]]:
    """Tasks that call for no working, with two things that a program sees of a response: the right word, and no other."""
    rows = []
    for number, task in enumerate(parts):
        specs = {
            "says the answer": {"kind": "include", "texts": [task.answer]},
            "says nothing else": {"kind": "words", "relation": "at_most", "count": 1},
        }
        checks = [
            {"line": line, "reason": f"instruction not followed: {line}", "wanted": True, "spec": spec}
            for line, spec in specs.items()
        ]
        rows.append({"id": f"instruction-{number:04}", "prompt": task.prompt, "checks": checks})
    return rows


def files() -> dict[str, list[dict[str, Any]]]:
    """The rows of every data file, by its name."""
    train = tasks(1, PROMPTS + RATED + 500)
    enough = HELD_OUT + RATED_HELD_OUT + 1000
    held_out = tasks(2, enough + 2 * INSTRUCTIONS, held_out=True)
    held_out, more = held_out[:enough], held_out[enough:]
    prompts, rated, spare = train[:PROMPTS], train[PROMPTS : PROMPTS + RATED], train[PROMPTS + RATED :]
    asked, rated_held_out = held_out[:HELD_OUT], held_out[HELD_OUT : HELD_OUT + RATED_HELD_OUT]
    rest = held_out[HELD_OUT + RATED_HELD_OUT :]
    return {
        "prompts.jsonl": [{"id": f"train-{i:04}", "prompt": task.prompt} for i, task in enumerate(prompts)],
        "heldout.jsonl": [
            {"id": f"heldout-{i:04}", "prompt": task.prompt, "answer": task.answer} for i, task in enumerate(asked)
        ],
        "helpsteer2_train.jsonl": rated_rows(random.Random("rated train"), rated, spare),
        "helpsteer2_validation.jsonl": rated_rows(random.Random("rated held out"), rated_held_out, rest[:100]),
        "rewardbench.jsonl": bench_rows(random.Random("rewardbench"), rest[100:]),
        "instructions.jsonl": instruction_rows([task for task in more if task.kind in STRINGS[1:]][:INSTRUCTIONS]),
    }


def contents() -> dict[str, bytes]:
    """The bytes of every data file, by its name."""
    return {name: "".join(json.dumps(row) + "\n" for row in rows).encode() for name, rows in files().items()}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        (folder / name).write_bytes(content)
