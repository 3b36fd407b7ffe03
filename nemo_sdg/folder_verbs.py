"""`convert` and `verify`: verbs on the folders of checkpoints and runs. They need neither torch nor ranks, `--to nemo2`
apart."""

from __future__ import annotations

from pathlib import Path

from nemo_sdg.checkpoints.convert import convert as convert_checkpoint
from nemo_sdg.checkpoints.verify import verify as verify_checkpoint
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError
from nemo_sdg.resources import resolve
from nemo_sdg.session import rank
from nemo_sdg.store.verifying import is_run, verify_run

_MOST = 20
"""Problems that are told one by one."""


def convert(
    source: str,
    target: Path,
    to: str,
    *,
    tp: int | None,
    pp: int | None,
    tokenizer: Path | None,
    adapter: str | None,
    threads: int | None,
) -> int:
    """Writes a checkpoint in another format; returns the exit status."""
    if rank() == 0:  # the threads of one process fill any disk; under torchrun the other ranks have nothing to do
        convert_checkpoint(
            source, target.expanduser(), to, Console(), tp=tp, pp=pp, tokenizer=tokenizer, adapter=adapter,
            threads=threads,
        )  # fmt: skip
    return 0


def verify(source: str, *, threads: int | None) -> int:
    """Says whether a checkpoint or a run is whole and unchanged: 0 if it is, else 1 and what is wrong with it."""
    if rank() != 0:
        return 0
    console, place = Console(), resolve(source)
    if not place.exists():
        raise CheckpointError("there is no such checkpoint", where=source, way_out="check the name")
    try:
        if is_run(place):
            problems = verify_run(place, console)
        else:
            problems = verify_checkpoint(source, console, threads=threads)
    except CheckpointError as error:
        problems = [str(error)]
    for problem in problems[:_MOST]:
        console.fail(f"nemo-sdg: {problem}")
    if len(problems) > _MOST:
        console.fail(f"nemo-sdg: and {len(problems) - _MOST} more")
    return 1 if problems else 0
