"""One checkpoint format into another, bit by bit: no model, no ranks, and nothing half-finished under its name."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.making import Making
from nemo_sdg.checkpoints.meter import Meter
from nemo_sdg.checkpoints.peft import Adapter
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.checkpoints.tensors import Contents
from nemo_sdg.checkpoints.writing import STOP, Unit
from nemo_sdg.console import Console, size_text
from nemo_sdg.errors import CheckpointError, ConfigError, StoreError, TopologyError
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.resources import resolve

FORMATS = ("release", "hf", "nemo2")
VERSION = 1
"""Of what is written: raise it when the same input gives other bytes, so that no attempt continues with both."""
_SMALL = 16 << 20
"""Room for all that is not weights: config, tokenizer, headers, index."""


def convert(
    source: str,
    target: Path,
    to: str,
    console: Console,
    *,
    tp: int | None = None,
    pp: int | None = None,
    tokenizer: Path | None = None,
    adapter: str | None = None,
    threads: int | None = None,
) -> None:
    """Write the checkpoint `source` as the new folder `target`; a rerun after a kill continues.

    Args:
        to: one of FORMATS.
        tp, pp: topology whose shards the pieces of the result are; by default the one that `source` names, else 1.
        tokenizer: a SentencePiece file for a checkpoint that has none, or in place of its own.
        adapter: a folder in PEFT's layout whose low-rank adapters are added to the weights.
        threads: files that are written at the same time.
    Raises:
        UserError: the source is not a whole checkpoint, the target exists, or the disk refuses.
    """
    if to not in FORMATS:
        raise ConfigError("there is no such format", where="--to", found=repr(to), expected=" or ".join(FORMATS))
    with console.progress("reading the metadata"):
        folder = ModelFolder.open(source)
        contents = folder.contents
        survey(folder)
        identity = {"source": _identity(folder)}
        if adapter is not None:
            lora = Adapter(resolve(adapter), folder.shape)
            contents, identity["adapter"] = lora.merged(contents), lora.digest
        target = _absolute(target, folder)
        tp, pp = _topology(contents, to, tp, pp)
        pieces = _tokenizer(folder, tokenizer, to)
        writer = _writer(to)
        units = writer.units(contents, tp=tp, pp=pp)
    identity |= {"to": to, "tp": tp, "pp": pp, "version": VERSION}
    with Making(target, identity) as making:
        if making.afresh:
            console.say(f"an earlier attempt cannot be continued ({making.afresh}): starting afresh")
        left = [unit for unit in units if not making.has(unit)]
        if len(left) < len(units):
            console.say(f"{len(units) - len(left)} of {len(units)} files were there already")
        _check_room(target, sum(unit.num_bytes for unit in left))
        _write(making, left, threads or min(8, os.cpu_count() or 1), console)
        with console.progress("writing the config and putting the folder under its name"):
            with making.finishing() as unfinished:
                writer.finish(contents, unfinished, tokenizer=pieces, tp=tp, pp=pp)
            making.commit()
    size, files = (
        size_text(sum(unit.num_bytes for unit in units)),
        "1 file" if len(units) == 1 else f"{len(units)} files",
    )
    console.say(f"{target} holds the model in the {to} format, {size} in {files} of weights")
    console.say(f"next: nemo-sdg verify {shlex.quote(str(target))}")


def _absolute(target: Path, folder: ModelFolder) -> Path:
    """The target by its full name. Raises ConfigError where it has none, or would lie inside the source."""
    full = Path(os.path.abspath(target))
    if not full.name:
        raise ConfigError("this cannot be the name of a new folder", where="DST", found=str(target))
    source, real = Path(os.path.realpath(folder.path)), Path(os.path.realpath(full))
    if source == real or source in real.parents:
        raise ConfigError(
            "the new checkpoint would lie inside the source", where="DST", found=str(target),
            way_out="choose a folder elsewhere",
        )  # fmt: skip
    return full


def _topology(contents: Contents, to: str, tp: int | None, pp: int | None) -> tuple[int, int]:
    """TP and PP whose shards the pieces are; what was not asked for is the source's own where that fits."""
    if to == "hf":
        return 1, 1  # whole tensors
    asked = (tp or 1, pp or 1)
    contents.shape.check_topology(*asked, where="command line")
    try:
        own = (tp or contents.saved_with.get("tp", 1), pp or contents.saved_with.get("pp", 1))
        contents.shape.check_topology(*own)
    except TopologyError:  # uneven stages, for one: the cut of the pieces is free
        return asked
    return own


def _identity(folder: ModelFolder) -> str:
    """Names the source: its weights by both ends of each file, and by when each file was written."""
    pieces = {piece.file for t in folder.contents.tensors.values() for of in t.by_layer.values() for piece in of}
    times = [(str(file.relative_to(folder.path.parent)), os.stat(file).st_mtime_ns) for file in sorted(pieces)]
    return hashlib.sha256(f"{folder.weights_digest} {times}".encode()).hexdigest()[:16]


def _writer(to: str) -> ModuleType:
    """The module with `units` and `finish` of a format; imported when it is asked for, as one of them needs torch."""
    if to == "release":
        from nemo_sdg.checkpoints import release_writer as writer
    elif to == "hf":
        from nemo_sdg.checkpoints.hf import writer
    else:
        from nemo_sdg.checkpoints.nemo2 import writer
    return writer


def _tokenizer(folder: ModelFolder, file: Path | None, to: str) -> bytes:
    """The SentencePiece model that the result gets; whether it fits is asked before any weight is written."""
    if file is None:
        try:
            pieces = folder.tokenizer
        except CheckpointError as error:
            raise CheckpointError(
                error.what, where=error.where, found=error.found, expected=error.expected,
                way_out="name a SentencePiece file with --tokenizer",
            ) from error  # fmt: skip
    else:
        Tokenizer(file)
        pieces = file.read_bytes()
    opened = Tokenizer(pieces, file or folder.path)
    if opened.vocab_size > folder.shape.vocab_size:
        raise CheckpointError(
            "the tokenizer has more pieces than the model has rows", where=file or folder.path, found=opened.vocab_size,
            expected=f"at most {folder.shape.vocab_size}", way_out="name the model's own tokenizer with --tokenizer",
        )  # fmt: skip
    if to == "hf":
        from nemo_sdg.checkpoints.hf.tokenizer import check_export

        check_export(pieces)
    return pieces


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed + _SMALL:
        raise StoreError(
            "there is not enough room", where=target, found=f"{free / 1e9:.3f} GB free",
            expected=f"{(needed + _SMALL) / 1e9:.3f} GB",
            way_out="make room and give the same command again, which continues",
        )  # fmt: skip


def _write(making: Making, units: list[Unit], threads: int, console: Console) -> None:
    """All units, several at a time; the first error stops the others."""
    total = sum(unit.num_bytes for unit in units)
    with console.progress("converting, MB", round(total / 1e6)) as progress:
        meter, written, futures = Meter(progress), 0, {}
        pool = ThreadPoolExecutor(threads, thread_name_prefix="convert")
        STOP.clear()
        try:
            futures = {pool.submit(making.write, unit): unit for unit in units}
            while futures:
                for future in wait(futures, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    future.result()
                    written += futures.pop(future).num_bytes
                meter.reach(min(total, written + making.unfinished_bytes()))
        finally:
            if futures:
                STOP.set()
            pool.shutdown(wait=True, cancel_futures=True)
