"""`.metadata` of a torch_dist checkpoint: which block of which tensor lies in which record of which file.

Layout: pytorch/pytorch torch/distributed/checkpoint/{metadata,filesystem}.py, and
NVIDIA/Megatron-LM core_v0.15.3 megatron/core/dist_checkpointing/strategies/torch.py (MCoreMetadata).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.checkpoints.nemo2 import pickles
from nemo_sdg.checkpoints.nemo2.pickles import Call, Name, Table
from nemo_sdg.errors import CheckpointError

INDEX = ".metadata"
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
"""torch's dtypes of weights and our names of them."""
_OTHER_DTYPES = "uint8 int8 int16 int32 int64 bool float8_e4m3fn float8_e5m2".split()
_INDEX_BYTES = 256 << 20
_FILE = re.compile(r"[\w.-]{1,200}\.distcp")
_AGAIN = "download the checkpoint again"


def _names(module: str, *attrs: str) -> list[Name]:
    return [Name(module, attr) for attr in attrs]


_ROOTS = [
    Name("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
    Name("torch.distributed.checkpoint.metadata", "Metadata"),
]
_TENSOR, _BYTES, _CHUNK, _KEY, _PROPERTIES = _names(
    "torch.distributed.checkpoint.metadata",
    "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex", "TensorProperties",
)  # fmt: skip
_STORED = Name("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_SIZE = Name("torch", "Size")
NAMES = frozenset(
    [*_ROOTS, _TENSOR, _BYTES, _CHUNK, _KEY, _PROPERTIES, _STORED, _SIZE]
    + _names("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING", "StorageMeta")
    + _names(
        "torch.distributed.checkpoint.planner",
        "SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData",
    )
    + _names("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan")
    + _names("torch.serialization", "_get_layout")
    + _names("torch", *DTYPES, *_OTHER_DTYPES)
    + _names("pathlib", "Path", "PosixPath")
    + _names("pathlib._local", "PosixPath")
    + _names("collections", "OrderedDict")
)  # fmt: skip
"""All that an index has been seen to name; megatron writes the plans of the saving ranks into it too."""

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """The bytes of one saved block: an archive of torch.save inside a .distcp file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Block:
    """A box of a tensor, and the record that holds it."""

    origin: Sizes
    shape: Sizes
    record: Record


@dataclass(frozen=True)
class IndexedTensor:
    """One tensor of the index."""

    name: str
    dtype: str
    """Ours where weights can have it, else torch's."""
    shape: Sizes
    blocks: tuple[Block, ...]


def read_index(files: Files, folder: str, wanted: re.Pattern[str]) -> tuple[dict[str, IndexedTensor], list[str]]:
    """The tensors of a torch_dist folder whose names match, and the names of all other tensors.

    Byte blobs (`_extra_state`, random states) are left out; nothing of them is ever opened.

    Raises:
        CheckpointError: the index is not what torch and megatron write; with what it holds instead.
    """
    name = f"{folder}{INDEX}"
    where = files.path(name)
    member = files.find(name)
    if member is None:
        raise CheckpointError("the index of the weights is missing", where=where, found="no file", way_out=_AGAIN)
    root = pickles.load(member.read(_INDEX_BYTES), NAMES, where)
    reader = _Reader(where)
    state = reader.state(root, *_ROOTS)
    records = reader.records(state.get("storage_data"))
    reformulated = state.get("mcore_data")
    reformulated = reformulated.by_name() if type(reformulated) is Table else {}
    tensors, others = {}, []
    for key, value in reader.pairs(state.get("state_dict_metadata")):
        if type(key) is not str:
            reader.refuse("a key of the index is not a string", type(key).__name__)
        if type(value) is Call and value.name == _BYTES:
            continue
        if not wanted.fullmatch(key):
            others.append(key)
            continue
        if key in tensors:
            reader.refuse("a tensor stands twice in the index", key)
        if type(reformulated.get(key)) is Table and reformulated[key].pairs:
            reader.refuse("a weight is stored flattened", key)
        tensors[key] = reader.tensor(key, value, records)
    return tensors, others


class _Reader:
    """Takes inert calls apart; whatever has not the form that torch gives it is refused."""

    def __init__(self, where: object) -> None:
        self.where = where

    def refuse(self, what: str, found: object, expected: object = None) -> None:
        expected = expected or "an index as Megatron writes it"
        raise CheckpointError(what, where=self.where, found=found, expected=expected, way_out=_AGAIN)

    def state(self, value: Any, *names: Name) -> dict[str, Any]:
        """The fields of an object of one of these classes."""
        if type(value) is not Call or value.name not in names or type(value.state) is not Table:
            found = value.name if type(value) is Call else type(value).__name__
            self.refuse("the index has another form", found, " or ".join(map(str, names)))
        return value.state.by_name()

    def pairs(self, value: Any) -> list[tuple[Any, Any]]:
        if type(value) is not Table:
            self.refuse("the index has another form", type(value).__name__, "a dict")
        return value.pairs

    def sizes(self, value: Any) -> Sizes:
        """A torch.Size."""
        if type(value) is Call and value.name == _SIZE and len(value.args) == 1:
            value = value.args[0]
            if type(value) is tuple and all(type(n) is int and 0 <= n < 1 << 40 for n in value) and len(value) < 9:
                return value
        self.refuse("the index has another form", "no sizes", "a torch.Size of up to 8 numbers")

    def number(self, value: Any) -> int:
        if type(value) is not int or value < 0:
            self.refuse("the index has another form", type(value).__name__, "a number of bytes")
        return value

    def records(self, value: Any) -> dict[tuple[str, Sizes], Record]:
        """The record of each block, by the tensor's name and the block's origin."""
        found = {}
        for key, info in self.pairs(value):
            index = self.state(key, _KEY)
            if index.get("offset") is None:
                continue  # a byte blob
            if type(index.get("fqn")) is not str:
                self.refuse("the index has another form", type(index.get("fqn")).__name__, "the name of a tensor")
            place = (index["fqn"], self.sizes(index["offset"]))
            if place in found:
                self.refuse("a block stands twice in the index", f"{place[0]} at {place[1]}")
            info = self.state(info, _STORED)
            if info.get("transform_descriptors"):
                self.refuse("a block is stored compressed", place[0], "plain records")
            file = info.get("relative_path")
            if type(file) is not str or not _FILE.fullmatch(file):
                found = file[:120] if type(file) is str else type(file).__name__
                self.refuse("a block lies in a file with an odd name", found, "*.distcp beside the index")
            found[place] = Record(file, self.number(info.get("offset")), self.number(info.get("length")))
        return found

    def tensor(self, key: str, value: Any, records: dict[tuple[str, Sizes], Record]) -> IndexedTensor:
        fields = self.state(value, _TENSOR)
        properties = fields.get("properties")
        state = properties.state if type(properties) is Call and properties.name == _PROPERTIES else None
        if type(state) is not tuple or not state or type(state[0]) is not Name or state[0].module != "torch":
            self.refuse("the index has another form", f"{key} without a dtype")
        shape, chunks = self.sizes(fields.get("size")), fields.get("chunks")
        if type(chunks) is not list:
            self.refuse("the index has another form", f"{key} without blocks")
        blocks = []
        for chunk in chunks:
            box = self.state(chunk, _CHUNK)
            origin, size = self.sizes(box.get("offsets")), self.sizes(box.get("sizes"))
            if (key, origin) not in records:
                self.refuse("a block of a tensor is nowhere", f"{key} at {origin}", "a record in a .distcp file")
            blocks.append(Block(origin, size, records[key, origin]))
        self._check_cover(key, shape, blocks)
        attr = state[0].attr
        return IndexedTensor(key, DTYPES.get(attr, attr), shape, tuple(blocks))

    def _check_cover(self, key: str, shape: Sizes, blocks: list[Block]) -> None:
        """The blocks are a grid that fills the tensor: no hole and no overlap."""
        steps: list[dict[int, int]] = [{} for _ in shape]
        for block in blocks:
            if not len(block.origin) == len(block.shape) == len(shape):
                self.refuse("a block has other axes than its tensor", f"{key} at {block.origin}", f"{len(shape)} axes")
            for axis, (start, size) in enumerate(zip(block.origin, block.shape)):
                if steps[axis].setdefault(start, size) != size:
                    self.refuse("the blocks of a tensor are no grid", f"{key} at {block.origin}")
        count = 1
        for length, axis in zip(shape, steps):
            at = 0
            while at in axis and axis[at]:
                at += axis[at]
            if at != length or sum(axis.values()) != length:
                self.refuse("the blocks do not fill the tensor", f"{key}, up to {at}", f"up to {length}")
            count *= len(axis)
        if len({block.origin for block in blocks}) != len(blocks) or len(blocks) != count:
            self.refuse("the blocks do not fill the tensor", f"{key}, {len(blocks)} blocks", f"{count}")
