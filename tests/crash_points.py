"""Every point at which a round can be cut short, in every way, and what must be true afterwards."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import model_free
import pytest
from disks import Failing, Lazy, Platter, Recorder, Site, power_cuts, put, visible

from nemo_sdg.config import RunConfig
from nemo_sdg.errors import StoreError
from nemo_sdg.store import disk

FAILURES = ("exit", "EIO", "ENOSPC")
_KILLED = 77


@dataclass(frozen=True)
class Round:
    """A round that nothing disturbed."""

    config: RunConfig
    files: dict[str, bytes]
    operations: int
    scratch: Path


@contextmanager
def working_on(fs: disk.FileSystem) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "fs", fs)
        yield


def undisturbed(scratch: Path) -> Round:
    config = model_free.settings(model_free.inputs(scratch))
    counting = Failing(0, lambda: None)
    (scratch / "clean").mkdir()
    with working_on(counting):
        model_free.run(config, scratch / "clean" / "run")
    return Round(config, visible(scratch / "clean"), counting.count, scratch)


def fail(whole: Round, how: str, at: int) -> str | None:
    """Lets the `at`-th operation fail and continues the run; what is wrong with what follows."""
    root = whole.scratch / f"{how}-{at}"
    root.mkdir()
    if how == "exit":
        pid = os.fork()
        if pid == 0:
            with working_on(Failing(at, lambda: os._exit(_KILLED))):
                model_free.run(whole.config, root / "run")
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if ended != _KILLED:
            return f"it was to be killed and ended with {ended}"
    else:
        number = getattr(errno, how)

        def refuse() -> None:
            raise OSError(number, os.strerror(number))

        try:
            with working_on(Failing(at, refuse)):
                model_free.run(whole.config, root / "run")
            return "the disk's refusal was passed over"
        except StoreError as error:
            if os.strerror(number) not in str(error):
                return f"the disk said {how}, and the user reads: {error}"
        except OSError as error:
            return f"not told as a mistake of the disk: {error!r}"
    return _continued(whole, root)


def _continued(whole: Round, root: Path) -> str | None:
    """Whether the run opens and ends as the undisturbed one."""
    try:
        with working_on(Lazy()):
            model_free.run(whole.config, root / "run")
    except Exception as error:
        return f"it does not go on: {error!r}"
    found = visible(root)
    differ = sorted(name for name in {*found, *whole.files} if found.get(name) != whole.files.get(name))
    left = [file.name for file in root.rglob(".*.tmp-*")]
    shutil.rmtree(root)
    if differ or left:
        return f"it ends with other bytes in {differ}, and leaves {left}"
    return None


def recorded(whole: Round, name: str, left_out: Site | None = None) -> Recorder:
    """A round on a disk that is written down."""
    root = whole.scratch / name
    root.mkdir()
    recorder = Recorder(root, left_out)
    with working_on(recorder):
        model_free.run(whole.config, root / "run", recorder.promise)
    recorder.left = visible(root)
    shutil.rmtree(root)
    return recorder


def missed(whole: Round, site: Site) -> bool:
    """Whether it shows that a sync or a rename is left out: a promise is broken, or the round ends otherwise."""
    try:
        recorder = recorded(whole, "sabotaged", left_out=site)
    except Exception:
        shutil.rmtree(whole.scratch / "sabotaged")
        return True
    return bool(broken_promises(recorder.log)) or recorder.left != whole.files


def broken_promises(log: Iterable[tuple]) -> list[str]:
    """Files that somebody counted on and that a power cut just then could take."""
    platter, broken = Platter(), []
    for operation in log:
        if operation[0] != "promise":
            platter.apply(operation)
            continue
        left = platter.after_power_cut(power_cuts(0)["nothing"])
        there = {name: data for name, data in left.items() if data is not None and counts(name)}
        broken += [name for name in {*operation[2], *there} if there.get(name) != operation[2].get(name)]
    return broken


def counts(name: str) -> bool:
    """Whether a file of this name is one of the run's, and no lock, log or temporary one."""
    parts = Path(name).parts
    return parts[-1] != "run.lock" and "logs" not in parts and not any(part.startswith(".") for part in parts)


def cut(
    whole: Round, log: list[tuple], points: Iterable[int], which: Callable[[int], Iterable[str]]
) -> Iterator[str | None]:
    """Cuts the power after so many operations, in the ways that `which` names, and continues from what is left."""
    operations = [operation for operation in log if operation[0] != "promise"]
    for at in points:
        platter = Platter()
        for operation in operations[:at]:
            platter.apply(operation)
        for way in which(at):
            left = platter.after_power_cut(power_cuts(at)[way])
            wrong = _continued(whole, put(left, whole.scratch / f"cut-{at}"))
            shutil.rmtree(whole.scratch / f"cut-{at}", ignore_errors=True)
            yield wrong and f"after {at} operations, {way} of the rest: {wrong}"
