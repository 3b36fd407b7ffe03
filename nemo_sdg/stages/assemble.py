"""Assemble: the round's decisions and HelpSteer2 become the files that training reads.

datasets/sft.jsonl     kept responses in NeMo's chat format
datasets/reward.jsonl  every scored response with its scores, and HelpSteer2 with its labels, as regression rows
datasets/faulty.jsonl  HelpSteer2 rows that were set aside
datasets/README.md     what is in them and where it came from

The folder appears whole, by one rename. A prompt that an evaluation holds out is in none of the files.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Sequence

from nemo_sdg import resources
from nemo_sdg.config import MISSING, Evaluate
from nemo_sdg.errors import RowError, StoreError, UserError
from nemo_sdg.models.templates import OUTPUT_NAMES, reward_prompt
from nemo_sdg.records import Decision, Labelled, Prompt, hash_of, read_rows, shortest_float32
from nemo_sdg.records.fields import Message
from nemo_sdg.stages.context import Context
from nemo_sdg.store import StageStore, commit_file, commit_folder, commit_rows, conserved, digest, write_sums

SUMMARY = "summary.json"
FILES = ("sft.jsonl", "reward.jsonl", "faulty.jsonl")


def run(context: Context) -> dict:
    """Totals per file: {"sft": {...}, "reward": {...}}. Raises UserError when a model to be trained has no rows."""
    return context.on_writer(lambda: _write(context))


def chat_row(messages: Sequence[Message], response: str) -> dict:
    """A dialogue in NeMo's SFT chat format (facts: `mask` names the side that is not trained on)."""
    turns = [*messages, {"role": "assistant", "content": response}]
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    said = [{"from": turn["role"].capitalize(), "value": turn["content"], "label": None} for turn in turns]
    return {"system": system, "mask": "User", "type": None, "conversations": said}


def regression_row(messages: Sequence[Message], response: str, scores: dict[str, float]) -> dict:
    """A scored answer in the regression format: the reward prompt and nine labels. Raises RowError."""
    text = reward_prompt([*messages, {"role": "assistant", "content": response}])
    return {"text": text, "label": [shortest_float32(scores.get(name, MISSING)) for name in OUTPUT_NAMES]}


class HeldOut:
    """The conversations that evaluation asks about; none of them may be trained on, also not as an earlier turn."""

    def __init__(self, settings: Evaluate) -> None:
        self.keys = set()
        for file, kind in ((settings.exact_match, Prompt), (settings.helpsteer2, Labelled)):
            if file is not None:
                self.keys |= {_key(row.messages) for row in read_rows(file, kind)[0]}

    def __contains__(self, messages: Sequence[Message]) -> bool:
        asked = (end for end, turn in enumerate(messages, start=1) if turn["role"] == "user")
        return any(_key(messages[:end]) in self.keys for end in asked)


def _key(messages: Sequence[Message]) -> str:
    return hash_of([[turn["role"], turn["content"].strip()] for turn in messages if turn["role"] != "system"])


def _write(context: Context) -> dict:
    final = context.run.round(context.round) / "datasets"
    decisions = StageStore.finished(final.parent / "decisions")
    evaluate, extra = context.config.evaluate, context.config.data.helpsteer2
    files = (extra, evaluate.exact_match, evaluate.helpsteer2)
    inputs = [decisions.digest, *(file and digest(resources.resolve(file)) for file in files)]
    name = context.fingerprint("assemble", inputs=inputs)
    if final.exists():
        return _finished(final, name)
    rows = [Decision.from_row(row, str(decisions.dir)) for row in decisions.read()]
    labelled, faults = read_rows(extra, Labelled) if extra else ([], [])
    held_out = HeldOut(evaluate)
    chats, chat_totals = _chats(rows, held_out)
    regressions, regression_totals = _regressions(rows, labelled, held_out)
    regression_totals |= {"rows_in": regression_totals["rows_in"] + len(faults), "faulty": len(faults)}
    totals = {"sft": conserved(chat_totals), "reward": conserved(regression_totals)}
    for kind in ("sft", "reward"):
        if getattr(context.config, kind).enabled and not totals[kind]["kept"]:
            raise _nothing_left(kind, context.round, decisions.totals if kind == "sft" else totals[kind])
    temporary = final.with_name(".datasets.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of an earlier start that was killed
    for file, content in zip(FILES, (chats, regressions, [fault.to_row() for fault in faults])):
        commit_rows(temporary / file, content)
    commit_file(temporary / "README.md", _card(context, totals, decisions.totals).encode())
    summary = {"fingerprint": name, "totals": totals, "digests": {file: digest(temporary / file) for file in FILES}}
    commit_file(temporary / SUMMARY, json.dumps(summary, indent=1).encode())
    write_sums(temporary)
    commit_folder(temporary, final)
    return totals


def _chats(rows: list[Decision], held_out: HeldOut) -> tuple[list[dict], dict]:
    chats, dropped = [], Counter()
    for row in rows:
        if not row.kept:
            dropped["not selected"] += 1
        elif row.messages in held_out:
            dropped["held out"] += 1
        else:
            chats.append(chat_row(row.messages, row.response))
    return chats, {"rows_in": len(rows), "kept": len(chats), "dropped": dict(dropped), "faulty": 0}


def _regressions(rows: list[Decision], labelled: list[Labelled], held_out: HeldOut) -> tuple[list[dict], dict]:
    regressions, dropped = [], Counter()
    scored = [(row.messages, row.response, row.scores) for row in rows]
    for messages, response, scores in scored + [(row.messages, row.response, row.labels) for row in labelled]:
        if messages in held_out:
            dropped["held out"] += 1
            continue
        try:
            row = regression_row(messages, response, scores)
        except RowError as error:
            dropped[error.what] += 1
            continue
        if None in row["label"]:
            dropped["score not finite"] += 1
        else:
            regressions.append(row)
    total = len(rows) + len(labelled)
    return regressions, {"rows_in": total, "kept": len(regressions), "dropped": dict(dropped), "faulty": 0}


def _finished(final: Path, name: str) -> dict:
    """The totals of an earlier start, when its files are still what they were."""
    try:
        summary = json.loads((final / SUMMARY).read_bytes())
    except (OSError, ValueError):
        raise StoreError(
            "the folder is not ours or was damaged", where=final, way_out="move it away and run again"
        ) from None
    if summary["fingerprint"] != name:
        raise StoreError(
            "the files were assembled from other rows or settings",
            where=final,
            found=summary["fingerprint"],
            expected=name,
            way_out="write to another --out, or delete this folder to assemble again",
        )
    for file, expected in summary["digests"].items():
        found = digest(final / file)
        if found != expected:
            way_out = "delete the folder and run again to assemble it once more"
            raise StoreError(
                "the file was altered", where=final / file, found=found, expected=expected, way_out=way_out
            )
    return summary["totals"]


def _nothing_left(kind: str, number: int, totals: dict) -> UserError:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in totals["dropped"].items())
    return UserError(
        f"nothing is left to train the {'policy' if kind == 'sft' else 'reward model'} on",
        where=f"round {number}",
        found=f"{totals['rows_in']} rows in, {totals['kept']} selected" + (f" ({reasons})" if reasons else ""),
        expected="at least one row",
        way_out=f"loosen select.minimum, raise generate.samples, or set {kind}.enabled=false",
    )


def _card(context: Context, totals: dict, selected: dict) -> str:
    config, lines = context.config, []
    for kind, told in totals.items():
        lines.append(
            f"| {kind}.jsonl | {told['rows_in']} | {told['kept']} | {_counts(told['dropped'])} | {told['faulty']} |"
        )
    limits = {"minimum": config.select.minimum, "maximum": config.select.maximum, "weights": config.select.weights}
    return "\n".join(
        [
            f"# Datasets of round {context.round} of the run {config.run.name}",
            "",
            "Synthetic: the responses were generated by a language model and scored by a reward model; people labelled",
            "only the rows of HelpSteer2.",
            "",
            "| file | rows in | kept | dropped, by reason | faulty |",
            "| --- | --- | --- | --- | --- |",
            *lines,
            "",
            f"* Prompts: `{config.data.prompts}`",
            f"* HelpSteer2: `{config.data.helpsteer2 or 'none'}`",
            f"* Selection: {json.dumps(limits)}; dropped there: {_counts(selected['dropped'])}",
            "* Held-out prompts of the evaluation are in none of the files.",
            f"* Settings: `run.yaml` of the run, fingerprint {context.run.fingerprint}.",
            "",
        ]
    )


def _counts(dropped: dict[str, int]) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in dropped.items()) or "none"
