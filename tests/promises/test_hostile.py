"""Nothing in a checkpoint runs: every tampered one is opened under an audit hook, and refused by name or harmless."""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
from audit import Seen, watched
from random_checkpoints import assert_same, read_bits

from nemo_sdg import resources
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.survey import survey
from nemo_sdg.checkpoints.verify import verify
from nemo_sdg.console import Console
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.tokenizer import Tokenizer

LIMIT_S = 2.0


def opened(path: Path) -> str:
    """All that this package does with a checkpoint before and while it reads it; what was refused, else "good"."""
    refused = []

    def step(fn) -> object:  # noqa: ANN001
        try:
            return fn()
        except CheckpointError as error:
            refused.append(str(error))
            return None

    folder = step(lambda: ModelFolder.open(path))
    if folder is not None and step(lambda: folder.contents) is not None:
        step(lambda: survey(folder))
        step(lambda: Tokenizer(folder.tokenizer, folder.contents.files.path(folder.contents.tokenizer)))
        step(lambda: folder.digest)
        step(lambda: read_bits(path))
    refused += step(lambda: verify(str(path), Console(io.StringIO()), threads=1)) or []
    return "good" if not refused else "refused: " + " | ".join(refused)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("hostile")
    good = hostile.good_ones(tmp)
    for path in good.values():
        assert opened(path) == "good"  # also imports all that reading imports
    return tmp, good, hostile.all_cases(good, tmp)


def look(path: Path) -> Seen:
    return watched(lambda: opened(path), [path, resources.root()])


def test_good_ones_pass_the_net(world):
    for path in world[1].values():
        seen = look(path)
        assert (seen.outcome, seen.violations) == ("good", ()), seen


def wrong_with(case: hostile.Case, seen: Seen) -> str | None:
    if seen.violations:
        return f"did what it must not: {seen.violations}"
    if case.names is None:
        return None if seen.outcome == "good" else f"was to be good, but {seen.outcome}"
    if not seen.outcome.startswith("refused: "):
        return f"was to be refused, but {seen.outcome[:300]}"
    if case.names not in seen.outcome:
        return f"the refusal does not name {case.names}: {seen.outcome}"
    # CPU time, for other work on this machine is not the checkpoint's fault; a hang is caught by the wall clock.
    return None if seen.cpu_s < LIMIT_S else f"took {seen.cpu_s:.1f} s"


def test_every_hostile_checkpoint(world):
    tmp, _, cases = world
    assert len(cases) >= 40 and len({case.name for case in cases}) == len(cases)
    failures, slowest, harmless = [], 0.0, 0
    for case in cases:
        seen = look(case.path)
        wrong = wrong_with(case, seen)
        slowest, harmless = max(slowest, seen.cpu_s), harmless + (case.names is None)
        verdict = "WRONG " if wrong else "good  " if case.names is None else "refused"
        print(f"{verdict:8}{seen.cpu_s:6.3f} s  {case.name}")
        if wrong:
            failures.append(f"{case.name}: {wrong}")
    refused = len(cases) - harmless
    print(f"{len(cases)} hostile checkpoints: {refused} refused, {harmless} harmless, slowest {slowest:.2f} s of CPU")
    assert not failures, "\n".join(failures)
    assert not hostile.canary(tmp).exists()


def test_harmless_ones_are_bit_equal(world):
    _, good, cases = world
    for case in cases:
        if case.names is None:
            kind = case.name.split(":")[0]
            assert_same(read_bits(case.path), read_bits(good[kind]))


VIOLATIONS = {
    "exec": lambda tmp: exec("1"),
    "compile": lambda tmp: compile("1", "x", "eval"),
    "import": lambda tmp: __import__("antigravity"),
    "os.system": lambda tmp: os.system("true"),
    "os.posix_spawn": lambda tmp: os.posix_spawn("/bin/true", ["true"], {}),
    "subprocess": lambda tmp: subprocess.run(["true"]),
    "os.fork": lambda tmp: os.fork() or os._exit(0),
    "os.exec": lambda tmp: os.execv("/absent", ["x"]),
    "socket": lambda tmp: socket.socket(),
    "getaddrinfo": lambda tmp: socket.getaddrinfo("localhost", 1),
    "ctypes": lambda tmp: ctypes.CDLL(None),
    "pickle.find_class": lambda tmp: pickle.loads(b"cos\nsystem\n."),
    "a pickle that runs": lambda tmp: pickle.loads(pickle.dumps(hostile.Runs(f"touch {hostile.canary(tmp)}"))),
    "reads outside": lambda tmp: open("/etc/hostname").close(),
    "os.open outside": lambda tmp: os.close(os.open("/etc/hostname", os.O_RDONLY)),
    "lists outside": lambda tmp: os.listdir("/etc"),
    "scans outside": lambda tmp: os.scandir("/etc").close(),
    "writes": lambda tmp: open(tmp / "written", "w").close(),
    "os.open for writing": lambda tmp: os.open(tmp / "written", os.O_WRONLY | os.O_CREAT),
    "removes": lambda tmp: os.remove(tmp / "absent"),
    "renames": lambda tmp: os.rename(tmp / "a", tmp / "b"),
    "makes a folder": lambda tmp: os.mkdir(tmp / "made"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_net_catches(name, tmp_path):
    def planted() -> str:
        try:
            VIOLATIONS[name](tmp_path)
        except Exception:
            pass
        return "good"

    seen = watched(planted, [tmp_path])
    assert seen.violations, name


def test_the_net_notices_a_hang_a_crash_and_a_bomb(monkeypatch, tmp_path):
    monkeypatch.setattr("audit.WALL_S", 0.5)
    os.mkfifo(tmp_path / "pipe")
    assert "hung" in watched(lambda: open(tmp_path / "pipe").read(), [tmp_path]).outcome
    assert "ended with -11" in watched(lambda: ctypes.string_at(0), []).outcome
    monkeypatch.undo()
    assert "MemoryError" in watched(lambda: str(len(bytearray(4 << 30))), []).outcome
    assert watched(lambda: "fine", []).outcome == "fine" and sys.platform == "linux"
