"""Judge: does each response meet the checks that its prompt brings? scored/ becomes judged/.

What a program can check is checked by a program; about the rest the judge is asked, each question once for a response.
A row of judged/ is the scored row with `broken`, the reasons of the checks that it breaks.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from nemo_sdg.config.judging import checks_responses
from nemo_sdg.errors import ConfigError, RowError
from nemo_sdg.parallel import stopping
from nemo_sdg.quality.answers import verdict
from nemo_sdg.quality.rules import usable
from nemo_sdg.records import Scored
from nemo_sdg.records.broken import BROKEN, CORRECT, UNCLEAR
from nemo_sdg.stages.context import Context
from nemo_sdg.stages.questions import Inquiry
from nemo_sdg.store import Group, StageStore
from nemo_sdg.synthesis.requirements import Questions, checks_of, followed, questions_of

VERSION = 1
"""Raised when the code changes what the same settings give."""


def run(context: Context) -> dict[str, Any]:
    """Judges what is not committed yet.

    Returns:
        {"rows_in", "kept", "dropped", "faulty"} in responses; "asked", questions to the judge; "broken" and "unclear",
        responses by the reason of a check that they break, or that the judge said neither yes nor no to.
    Raises:
        ConfigError: the settings name no brief, and do not say that the user's prompts bring checks.
    """
    if not checks_responses(context.config):
        way_out = "set data.synthesis.brief, or data.checks=true where rows of data.prompts bring checks; and"
        way_out += " select.checks=true; without them selection reads scored/"
        raise ConfigError("there are no checks to meet", where="data.checks", way_out=way_out)
    questions = Questions.load(context.config)
    source, folder = StageStore.finished(context.folder / "scored"), context.folder / "judged"
    rows = _Rows(source, questions)
    inquiry = Inquiry(
        context, "judge", folder / "answers", rows=source.rows, group_size=source.group_size,
        turns=source.turns, version=VERSION, source=source.digest, questions=questions.digest,
    )  # fmt: skip
    inquiry.run(rows.ask, lambda group: len(rows.ask(group)))
    return context.on_writer(lambda: _write(context, rows, inquiry))


def _write(context: Context, rows: _Rows, inquiry: Inquiry) -> dict[str, Any]:
    source = rows.source
    fingerprint = context.fingerprint(
        "judged", version=VERSION, inputs=[source.digest, inquiry.store.digest, rows.questions.digest]
    )
    store = source.beside(context.folder / "judged", fingerprint)
    if store.done:
        return store.totals
    for group in store.missing():
        judged, faults = rows.judge(group, inquiry.answers(group), inquiry.identity)
        if faults and context.config.run.strict:
            raise next(iter(faults.values()))
        store.set_aside(
            group, [{"id": name, "reason": why.what, "detail": str(why)} for name, why in faults.items()]
        )
        store.commit(group, [row.to_row() for row in judged])
        stopping.heed()
    counts = {name: Counter() for name in (BROKEN, UNCLEAR)}
    kept = 0
    for row in store.committed():
        kept += 1
        for name, counted in counts.items():
            counted.update(row.get(name, ()))
    return store.finish(
        {
            "rows_in": source.totals["kept"],
            "kept": kept,
            "dropped": {},
            "faulty": dict(store.aside().most_common()),
            "asked": inquiry.store.totals["rows_in"],
            **{name: dict(counted.most_common()) for name, counted in counts.items()},
        }
    )


class _Rows:
    """The scored rows with their checks, group by group."""

    def __init__(self, source: StageStore, questions: Questions) -> None:
        self.source, self.questions = source, questions

    def ask(self, group: Group) -> dict[str, str]:
        """The judge's questions about a group. A text that nobody can learn from is not worth a question."""
        asked = {}
        for row in self._of(group):
            try:
                wanted = questions_of(checks_of(row.extra, f"row {row.id}"))
            except RowError:
                continue  # set aside when the group is judged
            for number, check in enumerate(wanted if not usable(row.response) else ()):
                asked[_name(row, number)] = self.questions.ask(check, row.messages, row.response)
        return asked

    def judge(
        self, group: Group, answers: Mapping[str, str], identity: dict[str, str]
    ) -> tuple[list[Scored], dict[str, RowError]]:
        """(the judged rows, why others cannot be judged, by id)."""
        judged, faults = [], {}
        for row in self._of(group):
            try:
                judged.append(self._judged(row, answers, identity))
            except RowError as error:
                faults[row.id] = error
        return judged, faults

    def _judged(self, row: Scored, answers: Mapping[str, str], identity: dict[str, str]) -> Scored:
        checks = checks_of(row.extra, f"row {row.id}")
        columns = {name: value for name, value in row.extra.items() if name not in (BROKEN, UNCLEAR)}
        if not checks:
            return dataclasses.replace(row, extra=columns)
        wanted = questions_of(checks)
        said = {(check.question, check.line): answers.get(_name(row, n)) for n, check in enumerate(wanted)}
        found: dict[bool | None, list[str]] = {True: [], False: [], None: []}
        for check in checks:
            holds = check.holds(row.response)
            answer = None if check.spec is not None else said[check.question, check.line]
            found[holds if answer is None else self.questions.answered(check, answer)].append(check.reason)
        columns[BROKEN] = found[False]
        if found[None]:
            columns[UNCLEAR] = found[None]
        right = followed(checks, row.response)
        if right is not None and verdict(row.response, columns) is None:
            columns[CORRECT] = right
        who = identity if any(answer is not None for answer in said.values()) else {}
        return dataclasses.replace(row, extra=columns, provenance={**row.provenance, **who})

    def _of(self, group: Group) -> Iterator[Scored]:
        return (Scored.from_row(row, str(self.source.dir)) for row in self.source.rows_of(group))


def _name(row: Scored, number: int) -> str:
    """Of a question about a row, in the order of its checks."""
    return f"{row.id}/{number}"
