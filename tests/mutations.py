"""One seeded change to a good checkpoint, in any format, and what the refusal of it must name.

`structure` changes are of metadata and sizes: reading itself must refuse them, or give every bit as it was.
`content` changes leave all metadata consistent: only the sums can tell, so `verify` must.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import yaml
from checkpoints import hostile_nemo2
from hostile import change_header


@dataclass(frozen=True)
class Mutation:
    """What was changed."""

    kind: str
    names: tuple[str, ...]
    """One of these stands in the refusal."""
    content: bool = False


def mutate(folder: Path, kind: str, seed: int) -> Mutation:
    """Change a copy of a good checkpoint of the given format in place."""
    rng = random.Random(f"{kind} {seed}")
    table = {"release": RELEASE, "hf": HF, "nemo2": NEMO2}[kind]
    name = sorted(table)[seed % len(table)]  # each kind of change as often as the others
    names = table[name](folder, rng)
    # The bias of a reward head is optional in every format: a checkpoint without it is another good one.
    optional = name == "drop a tensor" and names[0].endswith("rm_head.bias")
    return Mutation(f"{kind}: {name}", tuple(names), name.startswith("content") or optional)


def other(rng: random.Random, sizes: list[int]) -> list[int]:
    """Other sizes: one larger or smaller, two exchanged, one axis more or less, the same number of elements or not."""
    while True:
        new, axis = list(sizes), rng.randrange(len(sizes))
        way = rng.randrange(6)
        if way == 0:
            new[axis] += rng.choice([-1, 1, 7])
        elif way == 1:
            new.reverse()
        elif way == 2:
            new.append(1)
        elif way == 3:
            new = [math.prod(sizes)]
        elif way == 4:
            new[axis] *= 2
        else:
            new[axis] = max(1, new[axis] // 2)
        if new != sizes and min(new) > 0:
            return new


# ---- the released layout


def _arrays(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "model_weights").iterdir() if path.is_dir())


def _chunks(array: Path) -> list[Path]:
    return sorted(path for path in array.iterdir() if path.name[0].isdigit())


def _array(folder: Path, rng: random.Random) -> Path:
    return rng.choice(_arrays(folder))


def _chunk(folder: Path, rng: random.Random) -> Path:
    return rng.choice(_chunks(_array(folder, rng)))


def _header(array: Path, **fields: object) -> list[str]:
    file = array / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return [array.name]


def _read_header(array: Path) -> dict:
    return json.loads((array / ".zarray").read_text())


def drop_array(folder: Path, rng: random.Random) -> list[str]:
    array = _array(folder, rng)
    shutil.rmtree(array)
    return [array.name]


def drop_header(folder: Path, rng: random.Random) -> list[str]:
    array = _array(folder, rng)
    (array / ".zarray").unlink()
    return [array.name]


def drop_chunk(folder: Path, rng: random.Random) -> list[str]:
    chunk = _chunk(folder, rng)
    chunk.unlink()
    return [f"{chunk.parent.name}/{chunk.name}"]


def add_array(folder: Path, rng: random.Random) -> list[str]:
    array = _array(folder, rng)
    new = array.with_name(array.name + rng.choice(["2", "_scale", ".bias", ""]) + rng.choice(["x", ".extra"]))
    shutil.copytree(array, new)
    return [new.name]


def add_chunk(folder: Path, rng: random.Random) -> list[str]:
    chunk = _chunk(folder, rng)
    new = chunk.with_name(".".join(str(int(i) + 9) for i in chunk.name.split(".")))
    shutil.copy(chunk, new)
    return [new.name]


def rename_array(folder: Path, rng: random.Random) -> list[str]:
    array = _array(folder, rng)
    new = rng.choice([array.name + "x", array.name.replace("model.", "module."), array.name[:-1]])
    array.rename(array.with_name(new))
    return [array.name, new]


def rename_chunk(folder: Path, rng: random.Random) -> list[str]:
    chunk = _chunk(folder, rng)
    chunk.rename(chunk.with_name(rng.choice(["x", "99." + chunk.name, chunk.name + ".0", "0" + chunk.name])))
    return [f"{chunk.parent.name}/{chunk.name}"]


def reshape(folder: Path, rng: random.Random) -> list[str]:
    array = _array(folder, rng)
    return _header(array, shape=other(rng, _read_header(array)["shape"]))


def reshape_all(folder: Path, rng: random.Random) -> list[str]:
    array = _array(folder, rng)
    sizes = other(rng, _read_header(array)["shape"])
    return _header(array, shape=sizes, chunks=sizes)


def dtype(folder: Path, rng: random.Random) -> list[str]:
    array = _array(folder, rng)
    return _header(array, dtype=rng.choice(["<f2", "<f4", "<f8", ">f2", "<i2", "<u2", "|O", "float8", 7, None]))


def grid(folder: Path, rng: random.Random) -> list[str]:
    array = _array(folder, rng)
    return _header(array, chunks=other(rng, _read_header(array)["chunks"]))


def order(folder: Path, rng: random.Random) -> list[str]:
    fields = [{"order": "F"}, {"dimension_separator": "/"}, {"zarr_format": 3}, {"filters": []}, {"compressor": {}}]
    return _header(_array(folder, rng), **rng.choice(fields))


def cut_chunk(folder: Path, rng: random.Random) -> list[str]:
    chunk = _chunk(folder, rng)
    data = chunk.read_bytes()
    chunk.write_bytes(rng.choice([data[: rng.randrange(len(data))], data + b"\0\0", data * 2]))
    return [f"{chunk.parent.name}/{chunk.name}"]


def flip_chunk(folder: Path, rng: random.Random) -> list[str]:
    chunk = _chunk(folder, rng)
    flip(chunk, rng.randrange(chunk.stat().st_size), rng)
    return [f"{chunk.parent.name}/{chunk.name}"]


def flip(file: Path, at: int, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def swap_chunks(folder: Path, rng: random.Random) -> list[str]:
    """Two files of one size change places: of one tensor, or of two tensors of one shape."""
    first = _chunk(folder, rng)
    same = [
        chunk
        for array in _arrays(folder)
        for chunk in _chunks(array)
        if chunk.stat().st_size == first.stat().st_size and chunk.read_bytes() != first.read_bytes()
    ]
    second = rng.choice(same) if same else None
    if second is None:  # the only one of its size
        return flip_chunk(folder, rng)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    return [f"{first.parent.name}/{first.name}"]


def zero_chunk(folder: Path, rng: random.Random) -> list[str]:
    chunk = _chunk(folder, rng)
    chunk.write_bytes(bytes(chunk.stat().st_size))
    return [f"{chunk.parent.name}/{chunk.name}"]


def config_value(folder: Path, rng: random.Random) -> list[str]:
    config = yaml.safe_load((folder / "model_config.yaml").read_text())
    sizes = ["num_layers", "hidden_size", "ffn_hidden_size", "kv_channels", "num_attention_heads", "num_query_groups"]
    key = rng.choice(sizes)
    config[key] = rng.choice([config[key] + 1, config[key] * 2, 0, -1, None, "many", 1.5])
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))
    return [key, "weights", "model_config.yaml"]


def config_meaning(folder: Path, rng: random.Random) -> list[str]:
    """Values that no tensor's shape depends on."""
    config = yaml.safe_load((folder / "model_config.yaml").read_text())
    config[rng.choice(["rotary_base", "rotary_percentage", "layernorm_epsilon", "seq_length"])] = rng.choice(
        [0.25, 2, 77]
    )
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))
    return ["model_config.yaml", "rotary_base", "seq_length"]


RELEASE = {
    "drop a tensor": drop_array, "drop a header": drop_header, "drop a chunk": drop_chunk, "add a tensor": add_array,
    "add a chunk": add_chunk, "rename a tensor": rename_array, "rename a chunk": rename_chunk, "reshape": reshape,
    "reshape with its grid": reshape_all, "dtype": dtype, "grid": grid, "order": order, "cut a chunk": cut_chunk,
    "config": config_value, "content: flip": flip_chunk, "content: swap": swap_chunks, "content: zeros": zero_chunk,
    "content: config": config_meaning,
}  # fmt: skip

# ---- Hugging Face

SAFE = "model.safetensors"


def _tensors(header: dict, rng: random.Random) -> str:
    return rng.choice(sorted(name for name in header if name != "__metadata__"))


def hf(change) -> object:  # noqa: ANN001
    """A change of a safetensors header: `change(header, name, rng)` gives more names, or a new header."""

    def apply(folder: Path, rng: random.Random) -> list[str]:
        names = []

        def edit(header: dict) -> None:
            name = _tensors(header, rng)
            names.extend([name, *(change(header, name, rng) or [])])

        change_header(edit)(folder)
        return [*names, SAFE]

    return apply


def _hf_rename(header: dict, name: str, rng: random.Random) -> list[str]:
    new = rng.choice([name + "x", name.replace("layers.0", "layers.77"), "evil.weight", name.upper()])
    new = new if new != name else name + "x"
    header[new] = header.pop(name)
    return [new]


def _hf_add(header: dict, name: str, rng: random.Random) -> list[str]:
    end = max(entry["data_offsets"][1] for entry in header.values() if "data_offsets" in entry)
    new = rng.choice(["model.layers.0.mlp.gate_proj.weight", "extra", "model.layers.9.mlp.up_proj.weight"])
    header[new] = {"dtype": "BF16", "shape": [0], "data_offsets": [end, end]}
    return [new]


def _hf_offsets(header: dict, name: str, rng: random.Random) -> None:
    begin, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = rng.choice(
        [[begin + 2, end + 2], [begin, end - 2], [begin, end + 2], [end, begin], [begin - 2, end], [begin + 1, end + 1]]
    )


def _hf_swap(header: dict, name: str, rng: random.Random) -> list[str]:
    """Two tensors of one shape and size change places."""
    names = sorted(n for n in header if n != "__metadata__")
    pairs = [(a, b) for a in names for b in names if a < b and header[a]["shape"] == header[b]["shape"]]
    a, b = rng.choice(pairs)
    header[a]["data_offsets"], header[b]["data_offsets"] = header[b]["data_offsets"], header[a]["data_offsets"]
    return [a, b]


def _hf_cut(folder: Path, rng: random.Random) -> list[str]:
    data = (folder / SAFE).read_bytes()
    (folder / SAFE).write_bytes(rng.choice([data[: rng.randrange(8, len(data))], data + b"\0\0"]))
    return [SAFE]


def _hf_length(folder: Path, rng: random.Random) -> list[str]:
    data = (folder / SAFE).read_bytes()
    length = struct.unpack("<Q", data[:8])[0] + rng.choice([-8, -1, 1, 8, 1 << 40])
    (folder / SAFE).write_bytes(struct.pack("<Q", length) + data[8:])
    return [SAFE]


def _hf_flip(folder: Path, rng: random.Random) -> list[str]:
    data = (folder / SAFE).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    flip(folder / SAFE, rng.randrange(start, len(data)), rng)
    return [SAFE]


def _hf_config(folder: Path, rng: random.Random) -> list[str]:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    sizes = [
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
    ]
    sizes += ["vocab_size"]
    key = rng.choice([name for name in sizes if name in config])
    config[key] = rng.choice([config[key] + 1, config[key] * 2, 0, -1, "many", 1.5])
    file.write_text(json.dumps(config))
    return [key, "config.json", SAFE, "model.layers", "model.embed", "lm_head", "model.norm"]


HF = {
    "drop a tensor": hf(lambda header, name, rng: header.pop(name) and None),
    "add a tensor": hf(_hf_add),
    "rename a tensor": hf(_hf_rename),
    "reshape": hf(lambda header, name, rng: header[name].update(shape=other(rng, header[name]["shape"]))),
    "dtype": hf(lambda header, name, rng: header[name].update(dtype=rng.choice(["F16", "F32", "I16", "F8_E4M3", 7]))),
    "offsets": hf(_hf_offsets),
    "cut": _hf_cut,
    "length of the header": _hf_length,
    "config": _hf_config,
    "content: flip": _hf_flip,
    "content: swap": hf(_hf_swap),
}

# ---- NeMo 2


def nemo2(change) -> object:  # noqa: ANN001
    """A change of the index: `change(metadata, fqn, rng)` gives more names."""

    def apply(folder: Path, rng: random.Random) -> list[str]:
        names = []

        def edit(metadata) -> None:  # noqa: ANN001
            stored = hostile_nemo2._stored_tensors(metadata)
            name = rng.choice(sorted({key.fqn for key in stored}))
            names.extend([name, *(change(metadata, name, rng) or [])])

        hostile_nemo2._edit(folder, edit)
        released = [name.replace("module.", "model.") for name in names]
        return [*names, *released, ".metadata", ".distcp"]

    return apply


def _records(metadata, name: str) -> list:  # noqa: ANN001
    return [info for key, info in sorted(metadata.storage_data.items(), key=str) if key.fqn == name]


def _n_drop(metadata, name: str, rng: random.Random) -> None:  # noqa: ANN001
    del metadata.state_dict_metadata[name]


def _n_drop_record(metadata, name: str, rng: random.Random) -> None:  # noqa: ANN001
    key = rng.choice(sorted((key for key in metadata.storage_data if key.fqn == name), key=str))
    del metadata.storage_data[key]


def _n_add(metadata, name: str, rng: random.Random) -> list[str]:  # noqa: ANN001
    new = rng.choice(["module.extra.weight", name + ".scale", "module.decoder.layers.mlp.gate.weight"])
    metadata.state_dict_metadata[new] = metadata.state_dict_metadata[name]
    return [new]


def _n_rename(metadata, name: str, rng: random.Random) -> list[str]:  # noqa: ANN001
    metadata.state_dict_metadata[name + "x"] = metadata.state_dict_metadata.pop(name)
    return [name + "x"]


def _n_reshape(metadata, name: str, rng: random.Random) -> None:  # noqa: ANN001
    import torch

    entry = metadata.state_dict_metadata[name]
    entry.size = torch.Size(other(rng, list(entry.size)))


def _n_dtype(metadata, name: str, rng: random.Random) -> None:  # noqa: ANN001
    import torch

    kinds = [torch.float16, torch.float32, torch.float64, torch.int16, torch.bool]
    metadata.state_dict_metadata[name].properties.dtype = rng.choice(kinds)


def _n_grid(metadata, name: str, rng: random.Random) -> None:  # noqa: ANN001
    import torch

    chunk = rng.choice(metadata.state_dict_metadata[name].chunks)
    if rng.random() < 0.5:
        chunk.sizes = torch.Size(other(rng, list(chunk.sizes)))
    else:
        offsets = list(chunk.offsets)
        offsets[rng.randrange(len(offsets))] += rng.choice([1, 8, -1])
        chunk.offsets = torch.Size(offsets) if min(offsets) >= 0 else torch.Size([n + 3 for n in chunk.offsets])


def _n_chunks(metadata, name: str, rng: random.Random) -> None:  # noqa: ANN001
    chunks = metadata.state_dict_metadata[name].chunks
    chunks.append(chunks[0]) if rng.random() < 0.5 else chunks.pop()


def _n_where(metadata, name: str, rng: random.Random) -> None:  # noqa: ANN001
    info = rng.choice(_records(metadata, name))
    field, step = rng.choice([("offset", 1), ("offset", 64), ("offset", -1), ("length", -10), ("length", -300)])
    setattr(info, field, getattr(info, field) + step)


def _n_file(metadata, name: str, rng: random.Random) -> None:  # noqa: ANN001
    rng.choice(_records(metadata, name)).relative_path = rng.choice(["__7_7.distcp", "common.pt", ".metadata", ""])


def _n_cut(folder: Path, rng: random.Random) -> list[str]:
    file = rng.choice(sorted(path for path in (folder / "weights").glob("__?_0.distcp")))
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])
    return [file.name]


def _n_flip(folder: Path, rng: random.Random) -> list[str]:
    file = rng.choice(sorted(path for path in (folder / "weights").glob("__?_0.distcp")))
    flip(file, rng.randrange(file.stat().st_size), rng)
    return [file.name, ".distcp"]


def _n_swap(metadata, name: str, rng: random.Random) -> list[str]:  # noqa: ANN001
    """Two records of one size change places."""
    stored = hostile_nemo2._stored_tensors(metadata)
    first = rng.choice(sorted((key for key in stored if key.fqn == name), key=str))
    same = sorted((k for k in stored if stored[k].length == stored[first].length and k != first), key=str)
    second = rng.choice(same)
    a, b = metadata.storage_data[first], metadata.storage_data[second]
    for field in ("relative_path", "offset", "length"):
        x, y = getattr(a, field), getattr(b, field)
        setattr(a, field, y)
        setattr(b, field, x)
    return [second.fqn]


NEMO2 = {
    "drop a tensor": nemo2(_n_drop), "drop a record": nemo2(_n_drop_record), "add a tensor": nemo2(_n_add),
    "rename a tensor": nemo2(_n_rename), "reshape": nemo2(_n_reshape), "dtype": nemo2(_n_dtype), "grid": nemo2(_n_grid),
    "blocks": nemo2(_n_chunks), "place": nemo2(_n_where), "file": nemo2(_n_file), "cut": _n_cut, "config": config_value,
    "content: flip": _n_flip, "content: swap": nemo2(_n_swap), "content: config": config_meaning,
}  # fmt: skip
