"""Traps at the places of other packages where data can become code: who comes there is written down, or stopped.

They cannot be taken away again, so they are set in forked processes only.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import pickle
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

PROGRAMS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.")
"""Events of Python's audit events table (PEP 578) that start one."""
RANKS, LOADED, LOOSE = "ranks", "loaded", "loose"
"""How a class is looked up for a pickle: of an object that another rank of the job has sent, by a load that is in the list
itself, or in any other way."""

seen: list[tuple[str, str]] = []
"""(what was done, and the file, class or program that it was done with)."""


def function(name: str) -> FunctionType:
    """The function that `module:qualified.name` names, without its decorators. Raises where there is none."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = inspect.getattr_static(found, part)
        found = getattr(found, "__func__", found)  # of a class method
    found = inspect.unwrap(found)
    assert isinstance(found, FunctionType), f"{name} is a {type(found).__name__}"
    return found


def forbid(names: Collection[str]) -> None:
    """Whoever calls one of these functions, by whatever name it was imported, is written down and stopped."""
    for name in names:
        trapped = function(name)
        trapped.__code__ = _stop.__code__.replace(co_name=name, co_freevars=trapped.__code__.co_freevars)


def _stop(*args: Any, **kwargs: Any) -> None:
    import sys  # it runs in the globals of another module

    import traps

    name = sys._getframe().f_code.co_name
    traps.seen.append(("reached", name))
    raise RuntimeError(f"{name} was reached")


def watch() -> None:
    """Writes down what is unpickled from where, and which programs are started."""
    import torch

    busy = False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            if event == "pickle.find_class":
                seen.append((_how(), ".".join(map(str, arguments))))
            elif event.startswith(PROGRAMS):
                seen.append((event, str(arguments)[:200]))
        finally:
            busy = False

    sys.addaudithook(hook)
    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        setattr(module, name, _noted(f"{module.__name__}.{name}", getattr(module, name)))


def _noted(name: str, load: Callable[..., Any]) -> Callable[..., Any]:
    def noted(source: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((name, _file(source)))
        return load(source, *args, **kwargs)

    return noted


def _how() -> str:
    codes = [frame.f_code for frame in _frames()]
    if any(code.co_name == "_tensor_to_object" and code.co_filename.endswith("distributed_c10d.py") for code in codes):
        return RANKS
    return LOADED if any(code.co_name == "noted" for code in codes) else LOOSE


def _file(source: Any) -> str:
    """The file that is read, or the folder whose reader has opened it."""
    from torch.distributed.checkpoint import FileSystemReader

    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(name := getattr(source, "name", None), str):
        return name
    for frame in _frames():
        reader = frame.f_locals.get("self")
        if isinstance(reader, FileSystemReader):
            return str(reader.path)
    return f"a {type(source).__name__}"


def _frames() -> Iterator[FrameType]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def keep(path: Path) -> None:
    """Puts what was seen into a file: the process may be killed."""
    path.write_text(json.dumps(seen))


def bait(path: Path) -> bytes:
    """A pickle that makes a file where it is loaded."""
    out = io.BytesIO()
    pickle.dump(_Bait(f"touch {path}"), out)
    return out.getvalue()


class _Bait:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)
