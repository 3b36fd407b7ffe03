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
    found = _watched(folders, tmp_path)
    assert found.keys() == folders.keys()
    for name, case in found.items():
        assert case["outcome"] == "refused", f"{name}: {case['outcome']}: {case['words']}"
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
