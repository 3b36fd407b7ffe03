"""NeMo 2 folders that were tampered with: refused by a typed error within two seconds, and nothing of them runs."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
import traceback
from pathlib import Path

import pytest
from checkpoints import hostile_nemo2
from checkpoints.nemo2_folders import write_nemo2
from folders import make_folder, make_tokenizer, small_shape

from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.nemo2 import pickles
from nemo_sdg.checkpoints.nemo2.pickles import Call, Name, Persistent, Table
from nemo_sdg.errors import CheckpointError

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.",
    "socket.",
    "exec",
    "compile",
    "import",
)
_FORBIDDEN += ("pickle.find_class", "ctypes.", "os.remove", "os.rename", "os.mkdir", "shutil.")

REASONS = {
    "the pickle names something that it does not need": [
        "index: os.system by GLOBAL", "index: os.system by GLOBAL, protocol 2",
        "index: posix.system by STACK_GLOBAL", "index: subprocess by STACK_GLOBAL", "index: eval", "index: exec",
        "index: getattr", "index: import", "index: a dotted way through torch",
        "index: a dotted attribute of an allowed module", "index: a dotted attribute of an allowed class",
        "index: an allowed module under another name", "index: a name that is joined", "index: torch.load",
        "index: torch's own rebuilding", "index: numpy's own rebuilding", "index: cloudpickle", "index: torch's JIT",
        "index: OBJ", "index: a class of torch exchanged", "index: a class of torch spelt otherwise",
        "archive: a call of os.system", "archive: a storage of another kind", "archive: a tensor of another dtype",
        "archive: a parameter", "archive: a sparse tensor",
    ],
    "the pickle holds an operation that is not allowed": [
        "index: a name from the memo", "index: INST", "index: NEWOBJ_EX", "index: EXT1", "index: EXT4",
        "index: PERSID", "index: BINPERSID", "index: DUP", "index: POP", "index: NEXT_BUFFER",
        "archive: a call behind the tensor",
    ],
    "the pickle is broken": [
        "index: BYTEARRAY8", "index: lists that double sixty times", "index: a million memos",
        "index: a decimal number of a million digits", "index: a string that claims 2 to the 60 bytes",
        "index: a frame that claims too much", "index: a protocol that does not exist",
        "index: an opcode that does not exist", "index: no end", "index: nothing", "index: only an end",
        "index: a memo that was never set", "index: a memo that is set twice", "index: a state for a class",
        "index: a call of a call", "index: a state that is set twice", "index: a mark where a value should be",
        "index: a key without a value", "index: items for what is no list",
    ],
    "the pickle nests too deep": [
        "index: tuples that double sixty times", "index: a million open marks", "index: a million open lists",
        "index: a million nested tuples",
    ],
    "a number of the pickle is too large": [
        "index: a number of a million bytes",
    ],
    "a string of the pickle is too long": [
        "index: a string of a megabyte",
    ],
    "the pickle is followed by other bytes": [
        "index: a second pickle behind the first",
    ],
    "the index has another form": [
        "index: a string in place of the index", "index: an index without a state",
        "index: an index without tensors", "index: a record before the beginning",
    ],
    "a block lies in a file with an odd name": [
        "index: a file above", "index: an absolute file", "index: a file of another kind",
        "index: a path that is no string",
    ],
    "a record does not lie in its file": [
        "index: a record behind the end", "index: a record that is too short", "index: a record without end",
        "archive: nothing", "files that are cut",
    ],
    "a record is no archive": [
        "index: a record that is cut", "archive: a pickle in place of an archive",
        "archive: the old format of torch", "archive: a comment at the end", "archive: a comment that is not there",
        "archive: noise",
    ],
    "a block is stored compressed": [
        "index: a compressed record",
    ],
    "the blocks of a tensor are no grid": ["index: a block of another size than its neighbours"],
    "a block stands twice in the index": ["a block that is listed twice"],
    "a block of a tensor is nowhere": ["index: a block that is nowhere"],
    "records overlap": [
        "index: records that overlap", "index: two blocks in one record",
    ],
    "the blocks do not fill the tensor": [
        "index: a block that is missing", "index: a block that stands twice",
        "index: a tensor larger than its blocks",
    ],
    "the dtype of module.decoder.final_layernorm.weight is not supported": [
        "index: a dtype of integers",
    ],
    "a record holds another tensor": [
        "index: another dtype than the record's", "archive: a tensor of another shape", "archive: a longer tensor",
    ],
    "a weight is stored flattened": [
        "index: a flattened weight",
    ],
    "a tensor is missing": [
        "index: a tensor that is missing",
    ],
    "the checkpoint holds a tensor that this architecture does not have": [
        "index: a tensor outside the model", "a tensor that no model has",
    ],
    "a member is compressed or encrypted": [
        "archive: deflated members",
    ],
    "a member stands twice in the archive": [
        "archive: a member twice",
    ],
    "a member is missing": [
        "archive: no tensor", "archive: no raw bytes", "archive: no byte order",
    ],
    "the byte order is not supported": [
        "archive: the other byte order",
    ],
    "a record has the wrong size": [
        "archive: too few raw bytes", "archive: too many raw bytes",
    ],
    "a member is too large": ["archive: a pickle of 8 kB"],
    "the archive has not one root": ["archive: two roots", "archive: a directory that claims no members"],
    "the archive's directory is broken": [
        "archive: a directory that claims more members", "archive: a directory elsewhere",
        "archive: a member with a zip64 size that is not there",
    ],
    "a member reaches out of its record": [
        "archive: a member behind the end", "archive: a member that claims 4 GB",
    ],
    "members of the archive overlap": [
        "archive: members that overlap",
    ],
    "a member's own header differs from the directory": [
        "archive: a member whose own header says deflated", "archive: a member whose own header names another",
    ],
    "a tensor is not stored in C order": [
        "archive: a tensor that is not dense",
    ],
    "a record holds no plain tensor": [
        "archive: a list",
    ],
    "a link leads out of the checkpoint": [
        "a link out of the folder",
    ],
    "a file of the weights is missing": [
        "a file that is missing",
    ],
    "the model config is not plain YAML": [
        "a YAML tag in model_config.yaml", "a YAML tag in context/model.yaml",
    ],
    "the model config is not a mapping": [
        "a model.yaml without a config",
    ],
    "the weights are not of a backend that is read": [
        "another backend", "a backend that is a list",
    ],
    "the file is too large for what it should be": [
        "a backend that is no JSON",
    ],
}  # fmt: skip
"""What a message says of which case: another guard further on must not hide one that is gone."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    source = make_folder(folder / "release", small_shape(), make_tokenizer(folder / "tokenizer.model"))
    return write_nemo2(source, folder / "good", tp=2, pp=2)


def _watched(folders: dict[str, Path], allowed: Path) -> dict[str, dict]:
    """What became of each folder, seen by a child whose every event is heard by an audit hook."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with open(read) as told:
            answer = told.read()
        os.waitpid(child, 0)
        return json.loads(answer)
    try:
        events: list[str] = []

        def hook(event: str, arguments: tuple) -> None:
            if event.startswith(_FORBIDDEN):
                events.append(f"{event} {arguments}"[:200])
            if event == "open" and isinstance(arguments[0], (str, bytes)):
                path, writes = os.fsdecode(arguments[0]), arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                inside = os.path.realpath(path).startswith(os.path.realpath(allowed))
                if writes or not inside and not path.startswith((sys.prefix, sys.base_prefix, "/proc", "<")):
                    events.append(f"open {path}")

        sys.addaudithook(hook)
        found = {}
        for name, folder in folders.items():
            events.clear()
            began = time.process_time()
            try:
                contents = ModelFolder.open(folder).contents
                outcome, words = "read", sorted(contents.tensors)
            except CheckpointError as error:
                outcome, words = "refused", str(error)
            except BaseException:
                outcome, words = "crashed", traceback.format_exc()
            seconds = time.process_time() - began
            found[name] = {"outcome": outcome, "words": words, "events": list(events), "seconds": seconds}
        with open(write, "w") as out:
            out.write(json.dumps(found))
    finally:
        os._exit(0)


def test_what_was_tampered_with_is_refused_and_nothing_runs(good: Path, tmp_path: Path):
    ModelFolder.open(good).contents  # all that is imported lazily is imported now
    folders = hostile_nemo2.cases(good, tmp_path)
    assert len(folders) > 100
    reasons = {name: reason for reason, names in REASONS.items() for name in names}
    assert reasons.keys() == folders.keys()
    found = _watched(folders, tmp_path)
    assert found.keys() == folders.keys()
    for name, case in found.items():
        assert case["outcome"] == "refused", f"{name}: {case['outcome']}: {case['words']}"
        assert reasons[name] in case["words"], f"{name}: {case['words']}"
        assert not case["events"], f"{name}: {case['events']}"
        assert case["seconds"] < 2, f"{name}: {case['seconds']:.1f} s"
        assert str(folders[name]) in case["words"], f"{name}: the message does not name the file: {case['words']}"
        assert len(case["words"]) < 700 and "Traceback" not in case["words"], f"{name}: {case['words']}"
    assert not hostile_nemo2.canary(tmp_path).exists()


def test_traps_in_files_that_hold_no_weights_are_never_opened(good: Path, tmp_path: Path):
    tensors = sorted(ModelFolder.open(good).contents.tensors)
    for name, case in _watched(hostile_nemo2.ignored(good, tmp_path), tmp_path).items():
        assert (case["outcome"], case["words"], case["events"]) == ("read", tensors, []), f"{name}: {case}"
    assert not hostile_nemo2.canary(tmp_path).exists()


def test_the_traps_do_run_for_one_who_unpickles(good: Path, tmp_path: Path):
    """Otherwise the tests above would say nothing."""
    for folder in hostile_nemo2.ignored(good, tmp_path).values():
        for file in sorted(folder.rglob("*")):
            if file.name in ("common.pt", "leaf", "__8_8.distcp") and b"system" in file.read_bytes():
                pickle.loads(file.read_bytes())
                assert hostile_nemo2.canary(tmp_path).exists()
                hostile_nemo2.canary(tmp_path).unlink()
    program = hostile_nemo2.programs(f"touch {hostile_nemo2.canary(tmp_path)}")["posix.system by STACK_GLOBAL"]
    pickle.loads(program)
    assert hostile_nemo2.canary(tmp_path).exists()


def test_a_pickle_becomes_inert_data():
    import collections

    for protocol in (2, 3, 4, 5):
        listed = [1, -2, 3.5, None, True, ("x" if protocol == 2 else b"x", "\u00e9", 1 << 40)]
        value = {"a": listed, "b": collections.OrderedDict()}
        made = pickles.load(pickle.dumps(value, protocol), [Name("collections", "OrderedDict")], "here")
        assert type(made) is Table and [key for key, _ in made.pairs] == ["a", "b"]
        assert made.by_name()["a"] == listed
        call = made.by_name()["b"]
        assert type(call) is Call and str(call.name) == "collections.OrderedDict" and call.args == ()


def test_what_torch_saves_is_persistent_only_where_that_is_allowed():
    data = b"\x80\x02X\x07\x00\x00\x00storageQ."
    assert pickles.load(data, [], "here", persistent=True) == Persistent("storage")
    with pytest.raises(CheckpointError, match="BINPERSID"):
        pickles.load(data, [], "here")


def test_shared_parts_stay_shared():
    part = ["x"]
    made = pickles.load(pickle.dumps([part, part], 4), [], "here")
    assert made == [["x"], ["x"]] and made[0] is made[1]


def test_a_program_has_a_limit(monkeypatch):
    data = pickle.dumps(list(range(100)), 4)
    assert pickles.load(data, [], "here") == list(range(100))
    monkeypatch.setattr(pickles, "MAX_OPCODES", 100)
    with pytest.raises(CheckpointError, match="here: the pickle is too long, found more than 100 steps"):
        pickles.load(data, [], "here")
