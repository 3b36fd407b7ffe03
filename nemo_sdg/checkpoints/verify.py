"""Is a checkpoint what it should be? Every byte is looked at once, in blocks, by several threads. No torch."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_sdg.checkpoints.files import Files, Member
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.making import SUMS
from nemo_sdg.checkpoints.meter import Meter
from nemo_sdg.checkpoints.names import EMBEDDING
from nemo_sdg.checkpoints.reading import RAW, Box, read_boxes, require_finite
from nemo_sdg.checkpoints.sums import read_sums, unlisted
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Piece, StoredTensor
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.resources import resolve

_BLOCK = 4 << 20
_NAMES = {"release": "released layout", "hf": "Hugging Face format", "nemo2": "NeMo 2 format"}
_NOT_THERE = f"the file is listed in {SUMS}, found no file"
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy")


@dataclass(frozen=True)
class _Task:
    """Bytes of one member, the SHA-256 they must have if that is known, and the pieces of tensors among them."""

    member: Member
    sha256: str | None
    pieces: tuple[tuple[StoredTensor, int | None, Piece], ...]


def verify(source: str, console: Console, *, threads: int | None = None) -> list[str]:
    """What is wrong with the bytes of a checkpoint, one sentence each; what it is goes to the console.

    Raises:
        CheckpointError: what its metadata, its config, its list of sums or its tokenizer say cannot be true.
    """
    with console.progress("reading the metadata"):
        try:
            folder = ModelFolder.open(source)
            files = folder.contents.files
            survey(folder)
        except CheckpointError as error:
            missing = _missing(source)  # says more than that a format was not recognised
            if missing:
                return [*missing, str(error)]
            raise
        sums = read_sums(files)
        tokenizer = _tokenizer(folder, console)
        tasks, problems, others = _tasks(folder, sums)
    problems += _read(files, tasks, threads or min(8, os.cpu_count() or 1), console)
    _tell_what_is_not_checked(folder, console, sums, others)
    if not problems:
        checked = f"every byte is that of {SUMS}, " if sums is not None else ""
        console.say(f"{describe(folder)}, {tokenizer}: {checked}all tensors are there and every value is finite")
    return problems


def describe(folder: ModelFolder) -> str:
    """For example `DIR: released layout, language model, bf16, 824,320 parameters, 1.65 MB, in chunks of TP 2`."""
    contents = folder.contents
    count = sum(math.prod(tensor.shape) for tensor in contents.tensors.values())
    size = sum(math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype] for tensor in contents.tensors.values())
    kind = "reward model" if contents.is_reward else "language model"
    grid = (
        f", in chunks of TP {len(contents.tensors[EMBEDDING].by_layer[None])}" if contents.format == "release" else ""
    )
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return (
        f"{folder.path}: {_NAMES.get(contents.format, contents.format)}, {kind}, {contents.dtype}, "
        f"{count:,} parameters, {size / unit:.3g} {name}{grid}"
    )


def _tokenizer(folder: ModelFolder, console: Console) -> str:
    """The tokenizer's digest, after it was opened."""
    if folder.contents.tokenizer is None and folder.contents.format == "hf":
        console.say("there is no SentencePiece tokenizer in the folder: converting it needs --tokenizer FILE")
        return "no tokenizer"
    model = folder.tokenizer
    where = folder.contents.files.path(folder.contents.tokenizer or "tokenizer.model")
    size, most = Tokenizer(model, where).vocab_size, folder.shape.vocab_size
    if size > most:
        raise CheckpointError(
            "the tokenizer has more pieces than the embedding has rows",
            where=where,
            found=size,
            expected=f"at most {most}",
        )
    return f"tokenizer {hashlib.sha256(model).hexdigest()[:16]}"


def _tasks(folder: ModelFolder, sums: dict[str, str] | None) -> tuple[list[_Task], list[str], list[str]]:
    """What is to be read; what is wrong with the list of sums; and the files that are neither weights nor listed."""
    files, problems, others = folder.contents.files, [], []
    by_member: dict[Member, dict[int, tuple[StoredTensor, int | None, Piece]]] = {}
    for tensor in folder.contents.tensors.values():
        for layer, pieces in tensor.by_layer.items():
            for piece in pieces:
                member = files.holding(piece.file, piece.offset)
                by_member.setdefault(member, {}).setdefault(piece.offset, (tensor, layer, piece))
    if sums is not None:
        weights, others = unlisted(files, sums, [member.name for member in by_member])
        problems += [f"{files.path(name)}: the file is not listed in {SUMS}" for name in weights]
        for name in sums:
            member = _find(files, name)
            if member is None:
                problems.append(f"{files.path(name)}: {_NOT_THERE}")
            else:
                by_member.setdefault(member, {})
    tasks = [
        _Task(member, (sums or {}).get(member.name), tuple(pieces[offset] for offset in sorted(pieces)))
        for member, pieces in by_member.items()
    ]
    return tasks, problems, others


def _missing(source: str) -> list[str]:
    """Files that are listed but not there, in a folder that could not be opened."""
    files = Files(resolve(source))
    return [f"{files.path(name)}: {_NOT_THERE}" for name in read_sums(files) or () if not _find(files, name)]


def _find(files: Files, name: str) -> Member | None:
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return files.find(name) if inside else None


def _read(files: Files, tasks: list[_Task], threads: int, console: Console) -> list[str]:
    """Look at all bytes; what is wrong with them, in the order of the names."""
    problems: dict[str, str] = {}
    total = sum(_size(task) for task in tasks)
    with console.progress("reading every byte, MB", round(total / 1e6)) as progress:
        meter = Meter(progress)
        pool, stop = ThreadPoolExecutor(threads, thread_name_prefix="verify"), threading.Event()
        try:
            futures = {pool.submit(_check, files, task, meter, stop): task for task in tasks}
            for future in as_completed(futures):
                problem = future.result()
                if problem:
                    problems[futures[future].member.name] = problem
        finally:
            stop.set()  # whoever is in the middle of a large file gives up
            pool.shutdown(wait=True, cancel_futures=True)
    return [problems[name] for name in sorted(problems)]


def _size(task: _Task) -> int:
    return sum(length for _, length, _ in _blocks(task))


def _check(files: Files, task: _Task, meter: Meter, stop: threading.Event) -> str | None:
    """What is wrong with the bytes of one task."""
    whole = hashlib.sha256()
    suspects = {}
    try:
        with open(files.open(task.member.file), "rb", buffering=0) as file:
            for start, length, piece in _blocks(task):
                if stop.is_set():
                    return None
                file.seek(start)
                block = _exactly(file, length, task.member)
                meter.add(length)
                if task.sha256 is not None:
                    whole.update(block)
                if piece is not None and not _finite(piece[0], block):
                    suspects[piece[2].offset] = piece
        if task.sha256 is not None and whole.hexdigest() != task.sha256:
            return str(
                CheckpointError(
                    "the content is not what it was", where=files.path(task.member.name), found=whole.hexdigest(),
                    expected=task.sha256, way_out="download or convert this file again",
                )
            )  # fmt: skip
        for tensor, layer, piece in suspects.values():
            _require_finite(files, tensor, layer, piece)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{task.member.file}: the file cannot be read, found {error.strerror}"
    return None


def _blocks(task: _Task) -> Iterator[tuple[int, int, tuple[StoredTensor, int | None, Piece] | None]]:
    """Stretches of a task's file (start, length, piece that they belong to); without a sum, only those of pieces."""
    at = task.member.offset
    end = at + task.member.size
    stretches = []
    for entry in task.pieces:
        tensor, _, piece = entry
        size = math.prod(piece.shape) * ITEM_BYTES[tensor.dtype]
        if task.sha256 is not None:
            stretches.append((at, piece.offset, None))
        stretches.append((piece.offset, piece.offset + size, entry))
        at = piece.offset + size
    if task.sha256 is not None:
        stretches.append((at, end, None))
    for start, stop, entry in stretches:
        for first in range(start, stop, _BLOCK):
            yield first, min(_BLOCK, stop - first), entry


def _exactly(file, length: int, member: Member) -> bytes:  # noqa: ANN001
    parts, missing = [], length
    while missing:
        part = file.read(missing)
        if not part:
            raise CheckpointError("the file is cut short", where=member.file, expected=f"{missing} more bytes")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _finite(tensor: StoredTensor, block: bytes) -> bool:
    try:
        require_finite(tensor, np.frombuffer(block, RAW[tensor.dtype]))
    except CheckpointError:
        return False
    return True


def _require_finite(files: Files, tensor: StoredTensor, layer: int | None, piece: Piece) -> None:
    """Raises CheckpointError if a value inside the tensor is not finite; the rest of an edge chunk may be anything."""
    spans = [(o, min(o + n, size)) for o, n, size in zip(piece.origin, piece.shape, tensor.shape)]
    layers = range(*spans[0]) if layer is not None else (None,)
    for at in layers:
        box = [slice(*span) for span in spans]
        if at is not None:
            box[0] = slice(at, at + 1)
        try:
            read_boxes(files, [Box(tensor, tuple(box), at, lambda raw, first, step: None)], threads=1)
        except CheckpointError as error:
            inside = "" if at is None else f" in layer {at}"
            raise CheckpointError(error.what + inside, where=piece.file, way_out=error.way_out) from error


def _tell_what_is_not_checked(
    folder: ModelFolder, console: Console, sums: dict[str, str] | None, others: list[str]
) -> None:
    names = folder.contents.files.names()
    if sums is None:
        console.say(f"there is no {SUMS}: a byte that became another finite value cannot be noticed")
    elif others:
        console.say(f"not listed in {SUMS}: {_several(others)}")
    pickled = [
        name for name in names if name.endswith(_PICKLED) or "_extra_state" in name or name.startswith("context/")
    ]
    if pickled:
        console.say(f"never loaded, for they can hold pickles: {_several(pickled)}")


def _several(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
