"""`select` on a user's files: scored rows in, kept rows out, dropped and faulty ones beside them with their reasons.

It needs no model, no ranks and no torch, and reads the rows twice, so that no row has to stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_sdg.config import RunConfig, Select, override
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, RowError
from nemo_sdg.quality import Selector
from nemo_sdg.records import Fault, Scored, each_row, row_files, why_none
from nemo_sdg.session import rank
from nemo_sdg.store import RowFile, beside, check_result, conserved

_DROPPED, _FAULTY = "dropped", "faulty"
_GROUPS = ("select", "reward.outputs")


def select(source: str, out: Path, words: list[str], *, strict: bool) -> int:
    """Applies the settings `select.*` to scored rows and returns the exit status.

    Args:
        source: a file, a folder of them, a glob or an address on the hub.
        words: `select.key=value` over the defaults, and `reward.outputs.NAME=N` for a label of the user's own.
        strict: a row that cannot be used is an error, not set aside.
    Raises:
        ConfigError: a word that is no setting of selection.
        RowError: no row can be used, or the result cannot be written.
    """
    settings = _settings(words)
    against = [*settings.decontaminate, *([settings.likeness] if settings.likeness else [])]
    check_result(out, [source, *row_files(source), *against], (_DROPPED, _FAULTY))
    if rank() != 0:  # under torchrun one rank is enough
        return 0
    console = Console()
    selector = Selector(settings, versions=True)
    faults: list[Fault] = []
    with console.progress("reading the scores") as progress:
        for row in _rows(source, faults):
            selector.add(row)
            progress.advance()
            if faults and strict:
                break
    if faults and strict:
        raise RowError(faults[0].reason, where=faults[0].place, way_out="correct it, or leave out --strict")
    selector.settle()
    dropped, faulty = beside(out, _DROPPED), beside(out, _FAULTY)
    with RowFile(out) as good, RowFile(dropped) as bad, console.progress("writing the rows", len(selector)) as progress:
        for decision in selector.decisions(_rows(source, [])):
            (good if decision.kept else bad).write(decision.to_row())
            progress.advance()
        totals = selector.totals()
        if not totals["rows_in"]:
            raise RowError("no row can be used", where=source, found=why_none(faults), way_out="correct the file")
        with RowFile(faulty) as aside:
            for fault in faults:
                aside.write(fault.to_row())
            for file in (bad, aside, good):
                if file.count or file is good:
                    file.commit()
                else:
                    file.path.unlink(missing_ok=True)  # of an earlier selection
    _tell(console, conserved({**totals, "rows_in": totals["rows_in"] + len(faults), "faulty": len(faults)}))
    console.say(f"{totals['kept']} kept rows are in {out}")
    for file, what in ((bad, "dropped"), (aside, "faulty")):
        if file.count:
            console.say(f"{file.count} {what} rows are with their reasons in {file.path}")
    return 0


def _settings(words: list[str]) -> Select:
    for word in words:
        if "=" in word and not word.startswith(_GROUPS):
            key = word.partition("=")[0]
            way_out = f"write select.{key} if that is meant" if key in vars(Select()) else None
            expected = "select.KEY=VALUE or reward.outputs.NAME=N"
            raise ConfigError("not a setting of selection", where=key, expected=expected, way_out=way_out)
    return override(RunConfig(), words).select


def _rows(source: str, faults: list[Fault]) -> Iterator[Scored]:
    """The rows that can be used; why others cannot is added to `faults`."""
    for _, row in each_row(source, Scored):
        if isinstance(row, Fault):
            faults.append(row)
        else:
            yield row


def _tell(console: Console, totals: dict[str, Any]) -> None:
    stages = [("rows in", totals["rows_in"]), ("faulty", totals["faulty"])]
    stages += [(f"dropped: {reason}", count) for reason, count in totals["dropped"].items()]
    share = max(totals["rows_in"], 1)
    rows = [(name, count, f"{100 * count / share:.1f} %") for name, count in (*stages, ("kept", totals["kept"]))]
    console.table("selection", ("", "rows", "share"), rows)
    variety = totals["variety"]
    if not variety:
        return
    measures = [name for name in variety["before"] if not isinstance(variety["before"][name], dict)]
    console.table(
        f"variety, of {variety['rows']} rows", ("", "before", "after"),
        [(name, variety["before"][name], variety["after"][name]) for name in measures],
    )  # fmt: skip
    if variety["narrowed"]:
        console.say(f"the selection narrows variety: {', '.join(variety['narrowed'])}")
    if "copies" in variety:
        console.say(f"{100 * variety['copies']:.1f} % of the kept rows copy one of yours")
    same = totals["length"]
    console.say(
        f"length alone would have kept {100 * same['longest']:.0f} % of them (the longest) or "
        f"{100 * same['shortest']:.0f} % (the shortest); chance {100 * same['chance']:.0f} %"
    )
