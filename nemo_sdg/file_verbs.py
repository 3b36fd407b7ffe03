"""`generate` and `score` on a user's files: rows in, rows out, faulty rows beside them with their reason.

What is wrong with the model folder, the topology or a row's JSON is found before torch is imported. The result
appears under its name when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.config import RunConfig, validate
from nemo_sdg.console import Console
from nemo_sdg.errors import RowError
from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.topology import data_parallel_size
from nemo_sdg.records import Fault, Prompt, Response, named_files, read_objects, read_rows, row_files, why_none
from nemo_sdg.session import start_once, world_size
from nemo_sdg.store import beside, check_result, commit_file

if TYPE_CHECKING:
    from nemo_sdg.parallel.mesh import Mesh

Made = Tuple[List[dict], Dict[str, str]]
"""Rows to write, and the reason by the id of each row that was set aside."""
Maker = Callable[["Mesh", Console, list], Made]
"""Makes them from this replica's share of the file."""
_FAULTY = "faulty"


def generate(config: RunConfig, model: str, prompts: str, out: Path) -> int:
    """Writes `generate.samples` responses for each prompt of a file; returns the exit status."""

    def make(mesh: Mesh, console: Console, rows: list[Prompt]) -> Made:
        from nemo_sdg.engine.backends.choosing import Role, sampling

        role, samples = Role("policy", config, model, given=False), config.generate.samples
        with console.progress("loading the model"):
            generator = role.open(mesh)
        provenance = {**role.identity(), "template": "instruct", "seed": config.run.seed}
        with console.progress("generating responses", len(rows) * samples) as progress:
            made = generator.generate(rows, sampling(config), samples)
            responses, faulty = _gather(config, prompts, Prompt, made, mesh, progress.advance, provenance)
        # A prompt without any response is one faulty row of the file.
        answered = {row["prompt_id"] for row in responses}
        reasons = {name.rpartition("#")[0]: why for name, why in faulty.items()}
        return responses, {name: why for name, why in reasons.items() if name not in answered}

    return _convert(config, model, prompts, Prompt, out, make, reward=False, what="responses")


def score(config: RunConfig, model: str, rows: str, out: Path) -> int:
    """Writes each conversation of a file with its five attributes; returns the exit status."""

    def make(mesh: Mesh, console: Console, responses: list[Response]) -> Made:
        from nemo_sdg.engine.backends.choosing import Role

        role = Role("reward", config, model, given=False)
        with console.progress("loading the model"):
            scorer = role.open(mesh)
        with console.progress("scoring", len(responses)) as progress:
            made = scorer.score(responses)
            return _gather(config, rows, Response, made, mesh, progress.advance, role.identity())

    return _convert(config, model, rows, Response, out, make, reward=True, what="scored rows")


def _gather(
    config: RunConfig, source: str, kind: type, made: Iterable[Any], mesh: Mesh, advance: Any, provenance: dict
) -> Made:
    """The rows of a backend as they are written, and why others are none.

    Raises:
        RowError: one was set aside, and the run is strict.
    """
    from nemo_sdg.engine.backends import Refusal

    rows, faulty = [], {}
    for row in made:
        advance()
        mesh.alive()
        if not isinstance(row, Refusal):
            rows.append({**row.to_row(), "provenance": {**row.provenance, **provenance}})
            continue
        faulty[row.id] = str(row.error)
        if config.run.strict:
            name, error = row.id.rpartition("#")[0] if kind is Prompt else row.id, row.error
            (fault,) = _faults(source, kind, {name: ""})
            where = f"{fault.place}, row {row.id}"
            raise RowError(error.what, where=where, found=error.found, expected=error.expected, way_out=error.way_out)
    return rows, faulty


def _convert(
    config: RunConfig, model: str, source: str, kind: type, out: Path, make: Maker, *, reward: bool, what: str
) -> int:
    validate(config)
    folder = ModelFolder.open(model)
    folder.require(reward=reward)
    folder.shape.check_topology(config.topology.tp, config.topology.pp, where="command line")
    survey(folder)
    data_parallel_size(config.topology, world_size(config.topology))
    rows, faults = read_rows(source, kind)
    if faults and config.run.strict:
        raise RowError(faults[0].reason, where=faults[0].place, way_out="correct it, or leave out --strict")
    if not rows:
        raise _no_row(source, faults)
    check_result(out, [source, *row_files(source)], [_FAULTY])

    def work(mesh: Mesh, console: Console) -> int:
        made = make(mesh, console, rows[mesh.dp_rank :: mesh.dp])
        mesh.meet()
        shares = _share(mesh, *made)
        on_writer(mesh, lambda: _write(source, kind, out, shares, rows, faults, console, what))
        return 0

    return start_once(
        work,
        topology=config.topology,
        loading="loading Megatron",
        modules=("nemo_sdg.engine.backends.choosing", "nemo_sdg.engine.backends.local"),
    )


def _share(mesh: Mesh, written: list[dict], faulty: dict[str, str]) -> list[Made]:
    """What each replica has made, on every rank."""
    return [mesh.broadcast_object([written, faulty], src=mesh.tp * replica) for replica in range(mesh.dp)]


def _write(
    source: str,
    kind: type,
    out: Path,
    shares: Sequence[Any],
    rows: list,
    faults: list[Fault],
    console: Console,
    what: str,
) -> None:
    order = {row.id: index for index, row in enumerate(rows)}
    owner = "prompt_id" if kind is Prompt else "id"
    written = [row for share, _ in shares for row in share]
    written.sort(key=lambda row: (order[row[owner]], row["sample"]))
    reasons = {name: reason for _, share in shares for name, reason in share.items()}
    faults = sorted([*faults, *_faults(source, kind, reasons)], key=lambda fault: (fault.file, fault.line))
    if not written:
        raise _no_row(source, faults)
    aside = beside(out, _FAULTY)
    if faults:
        commit_file(aside, _jsonl(fault.to_row() for fault in faults))
    else:
        aside.unlink(missing_ok=True)  # of an earlier run on another file
    commit_file(out, _jsonl(written))
    used = len({row[owner] for row in written})
    console.say(f"{len(written)} {what} from {used} rows are in {out}")
    if faults:
        console.say(f"{len(faults)} faulty rows were set aside with their reasons in {aside}")


def _no_row(source: str, faults: list[Fault]) -> RowError:
    return RowError("no row can be used", where=source, found=why_none(faults), way_out="correct the file")


def _faults(source: str, kind: type, reasons: dict[str, str]) -> list[Fault]:
    """The faults of rows that only the model could judge, with the lines on which they stand."""
    if not reasons:
        return []
    found = {}
    for name, (line, parsed) in ((name, row) for name, file in named_files(source) for row in read_objects(file)):
        if isinstance(parsed, dict):
            try:
                found.setdefault(kind.from_row(parsed).id, (name, line))
            except RowError:
                continue
    return [Fault(*found[name], reason) for name, reason in reasons.items()]


def _jsonl(rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
