"""A NeMo 2 checkpoint as tensors made of pieces: JSON, YAML, an index walked opcode by opcode, and raw bytes.

Nothing is unpickled and `context/` is never loaded; of it, `model.yaml` is read as plain data where no
`model_config.yaml` lies beside the weights. Optimizer states, random states, `common.pt` and `_extra_state` are
not opened. Key names: NVIDIA/Megatron-LM core_v0.15.3 (local and TransformerEngine layers, stacked or not).
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.names import EMBEDDING, LAYERS, OUTPUT_LAYER, released_key
from nemo_sdg.checkpoints.nemo2.index import INDEX, Block, IndexedTensor, read_index
from nemo_sdg.checkpoints.nemo2.records import find_bytes
from nemo_sdg.checkpoints.nemo2.sizes import find_tokenizer, read_sizes
from nemo_sdg.checkpoints.tensors import ITEM_BYTES, Contents, Piece, StoredTensor
from nemo_sdg.errors import CheckpointError

FOLDERS = ("weights/", "model_weights/", "")
"""Where the torch_dist folder lies: in NeMo 2, in late NeMo 1, or it is the folder that was given."""
_WEIGHT = re.compile(r"(?:module\.|model\.)?(?:embedding|decoder|output_layer|rm_head)\.[\w.]{1,200}")
_IGNORED = re.compile(r"(?:optimizer|chained_\d+|opt_param_scheduler|rng_state|rerun_state\w*|iteration)\b.*")
_PER_LAYER = re.compile(r"decoder\.layers\.\d+\.")
_STACKED = "decoder.layers."
_AGAIN = "download the checkpoint again"


def recognise(files: Files) -> bool:
    """Whether there is a torch_dist checkpoint here."""
    return _folder(files) is not None


def _folder(files: Files) -> str | None:
    return next((folder for folder in FOLDERS if files.find(folder + INDEX) is not None), None)


def read(files: Files) -> Contents:
    """What a NeMo 2 checkpoint holds.

    Raises:
        CheckpointError: the index, an archive or the config is not what NeMo writes, or of another architecture.
    """
    folder = _folder(files)
    assert folder is not None, "recognise comes first"
    _check_backend(files, folder)
    indexed, others = read_index(files, folder, _WEIGHT)
    for name in others:
        if not _IGNORED.fullmatch(name):
            raise CheckpointError(
                "the checkpoint holds a tensor that this architecture does not have", where=files.path(folder + INDEX),
                found=name[:120], expected="the tensors of the Nemotron architecture",
                way_out="check that it is the model that you meant",
            )  # fmt: skip
    parts: dict[str, dict[int | None, IndexedTensor]] = defaultdict(dict)
    for tensor in indexed.values():
        key, layer = _released(tensor.name)
        if layer in parts[key] or (parts[key] and (layer is None or None in parts[key])):
            _refuse(files, folder, "a tensor stands twice in the index", tensor.name)
        parts[key][layer] = tensor
    if None not in parts.get(EMBEDDING, {}):
        _refuse(files, folder, "a tensor is missing", f"no {EMBEDDING}")
    rows = parts[EMBEDDING][None].shape[:1]
    shape, saved_with, tokenizer = read_sizes(files, folder, rows[0] if rows else 0)
    places = _Places(files, folder, indexed)
    tensors = {}
    for key, of_layer in parts.items():
        vocabulary = shape.vocab_size if key in (EMBEDDING, OUTPUT_LAYER) else None
        tensors[key] = places.stored(key, of_layer, shape.num_layers, vocabulary)
    return Contents("nemo2", files, shape, tensors, tokenizer or find_tokenizer(files), saved_with)


def _refuse(
    files: Files, folder: str, what: str, found: object, expected: object = "an index as Megatron writes it"
) -> None:
    raise CheckpointError(what, where=files.path(folder + INDEX), found=found, expected=expected, way_out=_AGAIN)


def _check_backend(files: Files, folder: str) -> None:
    name = f"{folder}metadata.json"
    member = files.find(name)
    try:
        found = None if member is None else json.loads(member.read(1 << 16))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        found = "no JSON"
    backend = found.get("sharded_backend") if isinstance(found, dict) else found
    if backend != "torch_dist":
        raise CheckpointError(
            "the weights are not of a backend that is read", where=files.path(name), found=repr(backend)[:80],
            expected="'torch_dist'", way_out="convert the checkpoint with the NeMo that wrote it",
        )  # fmt: skip


def _released(name: str) -> tuple[str, int | None]:
    """Released key of a tensor of the index, and its layer where each layer stands alone."""
    name = name.removeprefix("module.").removeprefix("model.")
    if name.startswith(_STACKED) and not _PER_LAYER.match(name):
        key, _ = released_key(f"{_STACKED}0.{name[len(_STACKED) :]}", 0)
        return key, None
    return released_key(name, 0)


class _Places:
    """Finds the raw bytes of the blocks, file by file and in the order in which they lie there."""

    def __init__(self, files: Files, folder: str, indexed: dict[str, IndexedTensor]) -> None:
        self.files, self.folder = files, folder
        self.offsets: dict[tuple[str, tuple[int, ...]], int] = {}
        self.paths: dict[str, Path] = {}
        by_file: dict[str, list[tuple[IndexedTensor, Block]]] = defaultdict(list)
        for tensor in indexed.values():
            if tensor.dtype not in ITEM_BYTES:
                _refuse(
                    files, folder, f"the dtype of {tensor.name} is not supported", tensor.dtype, ", ".join(ITEM_BYTES)
                )
            for block in tensor.blocks:
                by_file[block.record.file].append((tensor, block))
        for name, entries in by_file.items():
            self._open(name, sorted(entries, key=lambda entry: entry[1].record.offset))

    def _open(self, name: str, entries: list[tuple[IndexedTensor, Block]]) -> None:
        member = self.files.find(self.folder + name)
        where = self.files.path(self.folder + name)
        if member is None:
            raise CheckpointError(
                "a file of the weights is missing", where=where, found="no file", expected=entries[0][0].name,
                way_out=_AGAIN,
            )  # fmt: skip
        self.paths[name] = member.file
        descriptor = self.files.open(member.file)
        try:
            end = 0
            for tensor, block in entries:
                record = block.record
                if record.offset < end:
                    _refuse(self.files, self.folder, "records overlap", f"{tensor.name} in {name}")
                end = record.offset + record.length
                base = member.offset + record.offset
                limit = member.offset + member.size
                self.offsets[tensor.name, block.origin] = find_bytes(
                    descriptor, base, record.length, block.shape, tensor.dtype, f"{where}, {tensor.name}", limit
                )
        finally:
            os.close(descriptor)

    def stored(
        self, key: str, of_layer: dict[int | None, IndexedTensor], num_layers: int, vocabulary: int | None
    ) -> StoredTensor:
        """A tensor of the model from its parts in the index: one, or one for each layer."""
        first = next(iter(of_layer.values()))
        dtypes = {tensor.dtype for tensor in of_layer.values()}
        shapes = {tensor.shape for tensor in of_layer.values()}
        where = self.files.path(self.folder)
        if len(dtypes) > 1 or len(shapes) > 1:
            _refuse(self.files, self.folder, f"the layers of {key} differ", sorted(dtypes) + sorted(shapes))
        by_layer: dict[int | None, tuple[Piece, ...]] = {}
        if None not in of_layer:  # each layer stands alone
            if set(of_layer) != set(range(num_layers)):
                missing = sorted(set(range(num_layers)) - set(of_layer)) or sorted(
                    set(of_layer) - set(range(num_layers))
                )
                _refuse(
                    self.files, self.folder, f"the layers of {key} are not those of the config", f"layer {missing[0]}"
                )
            for layer, tensor in sorted(of_layer.items()):
                by_layer[layer] = tuple(self._piece(tensor, block, layer) for block in tensor.blocks)
            return StoredTensor(key, (num_layers, *first.shape), first.dtype, where, by_layer)
        pieces = [self._piece(first, block) for block in first.blocks]
        if not key.startswith(LAYERS):
            shape = first.shape
            if vocabulary is not None and shape[:1] > (vocabulary,):
                shape = (vocabulary, *shape[1:])  # the rows after it are Megatron's padding
            return StoredTensor(key, shape, first.dtype, where, {None: tuple(pieces)})
        layers = defaultdict(list)
        for piece in pieces:
            for layer in range(piece.origin[0], min(piece.origin[0] + piece.shape[0], num_layers)):
                layers[layer].append(piece)
        by_layer = {layer: tuple(found) for layer, found in layers.items()}
        return StoredTensor(key, first.shape, first.dtype, where, by_layer)

    def _piece(self, tensor: IndexedTensor, block: Block, layer: int | None = None) -> Piece:
        origin, shape = block.origin, block.shape
        if layer is not None:
            origin, shape = (layer, *origin), (1, *shape)
        return Piece(self.paths[block.record.file], self.offsets[tensor.name, block.origin], origin, shape)
