"""Nothing in a checkpoint runs: every tampered one is opened under an audit hook, and refused by name or harmless."""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import subprocess
import sys

import hostile
import pytest
from audit import watched
from random_checkpoints import assert_same, read_bits


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("hostile")
    good = hostile.good_ones(tmp)
    for path in good.values():
        assert hostile.opened(path) == "good"  # also imports all that reading imports
    return tmp, good, hostile.all_cases(good, tmp)


def test_good_ones_pass_the_net(world):
    for path in world[1].values():
        seen = hostile.look(path)
        assert (seen.outcome, seen.violations) == ("good", ()), seen


def test_every_hostile_checkpoint(world):
    tmp, _, cases = world
    assert len(cases) >= 40 and len({case.name for case in cases}) == len(cases)
    failures, slowest, harmless = [], 0.0, 0
    for case in cases:
        seen = hostile.look(case.path)
        wrong = hostile.wrong_with(case, seen)
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
