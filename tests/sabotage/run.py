"""Does each promise have a test that notices when it is broken? `make sabotage` breaks them, one at a time.

Each patch of `patches.py` is put into a copy of the tree, in a temporary folder, and its test is run there; it must be
green without the patch and red with it. Torch, Megatron, Lightning and NeMo are imported once, here, and each run is
a fork of this process; of nemo_sdg and its tests nothing is imported here.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: a pool of threads would not outlive a fork

import argparse
import compileall
import contextlib
import json
import py_compile
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT / "tests")

from sabotage.patch import Patch  # noqa: E402  (found by this name as a script and in a test)
from sabotage.patches import PATCHES  # noqa: E402

AT_A_TIME = 2
"""Runs; each may fork ranks of its own."""
LIMIT_S = 120.0
"""Seconds for one run. One that takes longer is not red: the test would not have said why."""
LEFT_OUT = (".git", ".venv", "__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache", "demo", "build", "dist", "*.egg-info")
DEFECTS = ("NameError:", "SyntaxError:", "IndentationError:", "ImportError:", "ModuleNotFoundError:", "UnboundLocalError:")
"""What says that the patch is no program, and nothing about the promise."""


@dataclass
class Run:
    """Some tests of one file, in one copy of the tree."""

    patch: Patch | None
    """None for the tree as it is."""
    tests: list[str]
    folder: Path
    began: float = 0.0
    seconds: float = 0.0
    told: dict = field(default_factory=dict)
    """What `Listener` has seen."""

    def failed(self, test: str) -> list[str]:
        """How a test (a function with all its parameters, or one case) failed."""
        return [text for name, text in self.told.get("failed", {}).items() if belongs(name, test)]

    def green(self, test: str) -> bool:
        passed = [name for name in self.told.get("passed", ()) if belongs(name, test)]
        skipped = [name for name in self.told.get("skipped", ()) if belongs(name, test)]
        return bool(passed) and not skipped and not self.failed(test) and not self.told.get("broken")

    @property
    def verdict(self) -> str:
        """Of a run with a patch."""
        assert self.patch is not None
        failed = self.failed(self.patch.test)
        if self.told.get("broken"):
            return "NOT RED: it could not be run"
        if any(defect in text for text in failed for defect in DEFECTS):
            return "NOT RED: the patch is no program"
        return "red" if failed else "NOT RED"


class Listener:
    """A plugin of pytest that writes down what became of each test."""

    def __init__(self) -> None:
        self.told: dict = {"passed": [], "skipped": [], "failed": {}, "broken": []}

    def pytest_collectreport(self, report) -> None:  # noqa: ANN001
        if report.failed:
            self.told["broken"].append(str(report.longrepr))

    def pytest_runtest_logreport(self, report) -> None:  # noqa: ANN001
        if report.failed:
            self.told["failed"][report.nodeid] = str(report.longrepr)
        elif report.skipped:
            self.told["skipped"].append(report.nodeid)
        elif report.when == "call":
            self.told["passed"].append(report.nodeid)


def belongs(name: str, test: str) -> bool:
    return name == test or name.startswith(f"{test}[")


def sabotaged(tree: Path, patch: Patch) -> None:
    """Puts a patch into a copy of the tree."""
    file = tree / patch.file
    text = file.read_text(encoding="utf-8")
    assert text.count(patch.old) == 1, f"{patch.file}: {text.count(patch.old)} x {patch.old!r}"
    file.write_text(text.replace(patch.old, patch.new), encoding="utf-8")


def copied(root: Path) -> Path:
    """The tree as it is now, compiled; compiled code is taken for its source by the source's hash alone."""
    tree = root / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
    compileall.compile_dir(tree, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return tree


def start(run: Run, whole: Path) -> int:
    """Copies the tree and forks a process that tests it; its number."""
    tree = run.folder / "tree"
    run.folder.mkdir()
    shutil.copytree(whole, tree)
    if run.patch is not None:
        sabotaged(tree, run.patch)
    run.began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = _test(run, tree)
        finally:
            os._exit(status)
    return pid


def _test(run: Run, tree: Path) -> int:
    """In the child: what pytest says of the copy."""
    import pytest

    os.setsid()  # so that all that it starts can be ended with it
    log = os.open(run.folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(tree)
    here = {str(ROOT), str(ROOT / "tests"), ""}
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in here)]
    for name in [name for name in sys.modules if name.split(".")[0] == "sabotage"]:
        del sys.modules[name]
    os.environ["PYTHONPATH"] = str(tree)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    listener = Listener()
    words = ["-p", "no:cacheprovider", "--rootdir", str(tree), "-c", str(tree / "pyproject.toml"), "--tb=short"]
    words += [f"--basetemp={run.folder / 'tmp'}", *run.tests]
    status = pytest.main(words, plugins=[listener])
    import nemo_sdg

    if not Path(nemo_sdg.__file__).is_relative_to(tree):
        listener.told["broken"].append(f"another nemo_sdg was tested: {nemo_sdg.__file__}")
    if status not in (0, 1):
        listener.told["broken"].append(f"pytest ended with {int(status)}")
    (run.folder / "told.json").write_text(json.dumps(listener.told))
    return 0


def end(run: Run) -> None:
    """After its process: takes down what it told, and its folder away."""
    run.seconds = time.monotonic() - run.began
    try:
        run.told = json.loads((run.folder / "told.json").read_text())
    except FileNotFoundError:
        log = (run.folder / "log").read_text(errors="replace") if (run.folder / "log").exists() else ""
        run.told = {"broken": [f"ended without a result after {run.seconds:.0f} s\n{log[-2000:]}"]}
    shutil.rmtree(run.folder, ignore_errors=True)


def all_of(runs: Sequence[Run], whole: Path, at_a_time: int) -> Iterator[Run]:
    """Each run when it has ended."""
    waiting, under_way = list(runs), {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < at_a_time:
                run = waiting.pop(0)
                under_way[start(run, whole)] = run
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid in under_way:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # what it may have left behind
                run = under_way.pop(pid)
                end(run)
                yield run
                continue
            for number, run in under_way.items():
                if time.monotonic() - run.began > LIMIT_S:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(number, signal.SIGKILL)
            time.sleep(0.02)
    finally:
        for number in under_way:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(number, signal.SIGKILL)


def warm_up() -> None:
    """Imports what takes long, once for all runs; NeMo as `nemo_sdg.training.nemo` does."""
    os.environ.pop("RANK", None)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(nowhere):
            import lightning.pytorch  # noqa: F401
            import megatron.core  # noqa: F401
            import pytest  # noqa: F401
            import torch  # noqa: F401
            from nemo.collections import llm  # noqa: F401
    assert not [name for name in sys.modules if name.split(".")[0] == "nemo_sdg"], "it is to come from the copies"


def plan(patches: Sequence[Patch], root: Path) -> list[Run]:
    """The tests of each file once without a patch, then each patch with its test."""
    files: dict[str, list[str]] = {}
    for patch in patches:
        tests = files.setdefault(patch.test.split("::")[0], [])
        if patch.test not in tests:
            tests.append(patch.test)
    runs = [Run(None, tests, root / f"whole-{number}") for number, tests in enumerate(files.values())]
    return runs + [Run(patch, [patch.test], root / f"patch-{number}") for number, patch in enumerate(patches)]


def told(run: Run, why: bool) -> str:
    """What a run says to who watches."""
    if run.patch is None:
        lines = []
        for test in run.tests:
            if not run.green(test):
                found = "\n".join([*run.failed(test), *run.told.get("broken", ())]) or "nothing passed, or it was skipped"
                lines += [f"NOT GREEN WITHOUT A PATCH: {test}", *_indented(found)]
        count = f"{len(run.tests)} tests" if len(run.tests) > 1 else "a test"
        return "\n".join(lines) or f"{'green':8} {run.seconds:5.1f} s  {count} of {run.tests[0].split('::')[0]}, without a patch"
    lines = [f"{run.verdict:8} {run.seconds:5.1f} s  {run.patch.promise}", f"{'':17}{run.patch.test}"]
    if why or run.verdict != "red":
        lines += _indented("\n".join([*run.failed(run.patch.test), *run.told.get("broken", ())]))
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"{'':17}| {line}" for line in text.splitlines()[-15:]]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Breaks each promise in a copy of the tree and looks whether its test goes red.")
    help_ = "those with the word in their promise, file or test; may be given several times"
    parser.add_argument("--only", metavar="WORD", action="append", help=help_)
    parser.add_argument("--why", action="store_true", help="show how each test failed")
    parser.add_argument("--at-a-time", type=int, default=AT_A_TIME, metavar="N", help=f"runs ({AT_A_TIME})")
    options = parser.parse_args(words)
    words = [word.lower() for word in options.only or [""]]
    patches = [one for one in PATCHES if any(word in f"{one.promise}\n{one.file}\n{one.test}".lower() for word in words)]
    if not patches:
        print(f"--only: no patch has {' or '.join(map(repr, words))} in its promise, file or test", file=sys.stderr)
        return 2
    began = time.monotonic()
    warm_up()
    print(f"{len(patches)} patches; imports took {time.monotonic() - began:.0f} s", flush=True)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="sabotage-") as root:
        whole = copied(Path(root))
        for run in all_of(plan(patches, Path(root)), whole, max(1, options.at_a_time)):
            runs.append(run)
            print(told(run, options.why), flush=True)
    red = sum(run.patch is not None and run.verdict == "red" for run in runs)
    tests = [run.green(test) for run in runs if run.patch is None for test in run.tests]
    print(f"\n{red} of {len(patches)} patches turn their test red; {sum(tests)} of {len(tests)} tests are green without; "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    return 0 if red == len(patches) and all(tests) else 1


if __name__ == "__main__":
    sys.exit(main())
