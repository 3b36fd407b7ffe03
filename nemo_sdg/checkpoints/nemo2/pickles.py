"""Pickles as data: opcodes become numbers, strings, lists and named calls. Nothing is imported and nothing is called.

`torch.save` and the index of a torch_dist checkpoint are pickles, programs for a stack machine that may call anything.
Here the machine only notes what the program asks for: a name stays a `Name`, a call stays a `Call` with its
arguments. Names that are not on the caller's list and opcodes that such files do not need are refused at once.
Opcodes: CPython Lib/pickletools.py.
"""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass
from typing import Any, Collection, NoReturn

from nemo_sdg.errors import CheckpointError

MAX_OPCODES = 8_000_000
"""Four times what the index of a 340B checkpoint with its optimizer needs."""
_MAX_STACK = 8192
"""Picklers hand over list items and dict entries in batches of 1000."""
_MAX_STRING = 1 << 16
_MAX_TUPLE = 64
"""Sizes, offsets and arguments of calls have a few entries."""
_MAX_INT = 1 << 63
_PROTOCOLS = (2, 3, 4, 5)


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names; never looked up."""

    module: str
    attr: str

    def __str__(self) -> str:
        return f"{self.module}.{self.attr}"


class Call:
    """What the pickle would have made by calling `name` with `args`, and then given `state`."""

    __slots__ = ("name", "args", "state")

    def __init__(self, name: Name, args: tuple) -> None:
        self.name, self.args, self.state = name, args, None


class Table:
    """A dict as pairs: keys may be calls, and hashing what a stranger nested is not safe."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def by_name(self) -> dict[str, Any]:
        """The entries whose keys are strings; the last one of a name holds, as in Python."""
        return {key: value for key, value in self.pairs if type(key) is str}


@dataclass(frozen=True)
class Persistent:
    """Something outside the pickle, by the key that the pickle gives it."""

    key: Any


_MARK = object()


def load(data: bytes, names: Collection[Name], where: object, *, persistent: bool = False) -> Any:
    """The value that a pickle describes, as inert data.

    Args:
        names: the only classes and functions that it may name.
        where: what messages name.
        persistent: whether it may refer to things outside (`torch.save` does so for the raw tensors).
    Raises:
        CheckpointError: another name or opcode, a broken program, or one that is too large.
    """
    machine = _Machine(len(data), frozenset(names), where, persistent)
    handlers = {name: getattr(machine, method) for name, method in _HANDLERS.items()}
    position = 0
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES:
                machine.refuse("the pickle is too long", f"more than {MAX_OPCODES} steps")
            handler = handlers.get(opcode.name)
            if handler is None:
                machine.refuse("the pickle holds an operation that is not allowed", f"{opcode.name} at byte {position}")
            handler(argument, position)
    except (ValueError, IndexError, struct.error, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        machine.refuse("the pickle is broken", f"{' '.join(str(error).split())[:100]} after byte {position}")
    if position != len(data) - 1:
        machine.refuse("the pickle is followed by other bytes", f"{len(data) - 1 - position} bytes")
    return machine.result


class _Machine:
    """The stack, the memo, and one method for each allowed kind of opcode."""

    def __init__(self, size: int, names: frozenset[Name], where: object, persistent: bool) -> None:
        self.size, self.names, self.where, self.persistent = size, names, where, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.fresh = False
        """Whether the value on top was not remembered yet; picklers remember a value once, as soon as it is there."""
        self.result: Any = None

    def refuse(self, what: str, found: object, expected: object = None) -> NoReturn:
        raise CheckpointError(
            what, where=self.where, found=found, expected=expected,
            way_out="use this checkpoint only if you know who made it; convert it where it was made",
        )  # fmt: skip

    def _pop(self) -> Any:
        value = self.stack.pop()  # IndexError where there is none
        if value is _MARK:
            raise ValueError("a value is missing")
        return value

    def _top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"there is no {kind.__name__.lower()} to fill")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        stack = self.stack
        for start in range(len(stack) - 1, -1, -1):
            if stack[start] is _MARK:
                items = stack[start + 1 :]
                del stack[start:]
                return items
        raise ValueError("a mark is missing")

    def _push(self, value: Any) -> None:
        if len(self.stack) >= _MAX_STACK:
            self.refuse("the pickle nests too deep", f"more than {_MAX_STACK} open values")
        self.stack.append(value)
        self.fresh = True

    def proto(self, version: int, position: int) -> None:
        if position != 0 or version not in _PROTOCOLS:
            raise ValueError(f"protocol {version}")

    def frame(self, length: int, position: int) -> None:
        if length > self.size - position - 9:
            raise ValueError(f"a frame of {length} bytes")

    def stop(self, _: None, position: int) -> None:
        if len(self.stack) != 1:
            raise ValueError(f"{len(self.stack)} values at the end")
        self.result = self._pop()

    def constant(self, value: Any, position: int) -> None:
        kind = type(value)
        if kind is int:
            if not -_MAX_INT <= value < _MAX_INT:
                self.refuse("a number of the pickle is too large", f"{value.bit_length()} bits at byte {position}")
        elif kind is not float and len(value) > _MAX_STRING:
            self.refuse("a string of the pickle is too long", f"{len(value)} characters at byte {position}")
        self._push(value)

    def none(self, *_: Any) -> None:
        self._push(None)

    def true(self, *_: Any) -> None:
        self._push(True)

    def false(self, *_: Any) -> None:
        self._push(False)

    def mark(self, *_: Any) -> None:
        self._push(_MARK)

    def empty_tuple(self, *_: Any) -> None:
        self._push(())

    def empty_list(self, *_: Any) -> None:
        self._push([])

    def empty_dict(self, *_: Any) -> None:
        self._push(Table())

    def tuple(self, *_: Any) -> None:
        self._tuple(self._since_mark())

    def tuple1(self, *_: Any) -> None:
        self._tuple([self._pop()])

    def tuple2(self, *_: Any) -> None:
        second = self._pop()
        self._tuple([self._pop(), second])

    def tuple3(self, *_: Any) -> None:
        third, second = self._pop(), self._pop()
        self._tuple([self._pop(), second, third])

    def _tuple(self, items: list[Any]) -> None:
        if len(items) > _MAX_TUPLE:
            self.refuse("a tuple of the pickle is too long", f"{len(items)} entries")
        for item in items:
            if type(item) is tuple and any(type(inner) is tuple for inner in item):
                self.refuse("the pickle nests too deep", "a tuple in a tuple in a tuple")
        self._push(tuple(items))

    def append(self, *_: Any) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self, *_: Any) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def setitem(self, *_: Any) -> None:
        value, key = self._pop(), self._pop()
        self._top(Table).pairs.append((key, value))

    def setitems(self, *_: Any) -> None:
        items = self._since_mark()
        if len(items) % 2:
            raise ValueError("a key has no value")
        self._top(Table).pairs.extend(zip(items[::2], items[1::2]))

    def global_(self, both: str, position: int) -> None:
        self._name(*both.split(" ", 1))

    def stack_global(self, *_: Any) -> None:
        attr, module = self._pop(), self._pop()
        if type(attr) is not str or type(module) is not str:
            raise ValueError("a name that is not a string")
        self._name(module, attr)

    def _name(self, module: str, attr: str) -> None:
        name = Name(module, attr)
        if name not in self.names:
            self.refuse("the pickle names something that it does not need", str(name)[:120])
        self._push(name)

    def call(self, *_: Any) -> None:
        args, name = self._pop(), self._pop()
        if type(name) is not Name or type(args) is not tuple:
            raise ValueError("a call of what is not a name")
        self._push(Call(name, args))

    def build(self, *_: Any) -> None:
        state = self._pop()
        made = self._top(Call)
        if made.state is not None:
            raise ValueError("a state that is set twice")
        made.state = state

    def put(self, index: int, position: int) -> None:
        self._remember(index)

    def memoize(self, *_: Any) -> None:
        self._remember(len(self.memo))

    def _remember(self, index: int) -> None:
        if index in self.memo or not self.fresh or not self.stack or self.stack[-1] is _MARK:
            raise ValueError(f"memo {index} is set twice or from nothing")
        self.memo[index] = self.stack[-1]
        self.fresh = False

    def get(self, index: int, position: int) -> None:
        if index not in self.memo:
            raise ValueError(f"memo {index} is not set")
        self._push(self.memo[index])

    def persistent_id(self, _: None, position: int) -> None:
        if not self.persistent:
            self.refuse("the pickle holds an operation that is not allowed", f"BINPERSID at byte {position}")
        self._push(Persistent(self._pop()))


_HANDLERS = {
    "PROTO": "proto", "FRAME": "frame", "STOP": "stop", "NONE": "none", "NEWTRUE": "true", "NEWFALSE": "false",
    "BININT": "constant", "BININT1": "constant", "BININT2": "constant", "LONG1": "constant", "LONG4": "constant",
    "BINFLOAT": "constant", "SHORT_BINUNICODE": "constant", "BINUNICODE": "constant", "BINUNICODE8": "constant",
    "SHORT_BINBYTES": "constant", "BINBYTES": "constant", "MARK": "mark", "EMPTY_TUPLE": "empty_tuple",
    "EMPTY_LIST": "empty_list", "EMPTY_DICT": "empty_dict", "TUPLE": "tuple", "TUPLE1": "tuple1", "TUPLE2": "tuple2",
    "TUPLE3": "tuple3", "APPEND": "append", "APPENDS": "appends", "SETITEM": "setitem", "SETITEMS": "setitems",
    "GLOBAL": "global_", "STACK_GLOBAL": "stack_global", "REDUCE": "call", "NEWOBJ": "call", "BUILD": "build",
    "BINPUT": "put", "LONG_BINPUT": "put", "MEMOIZE": "memoize", "BINGET": "get", "LONG_BINGET": "get",
    "BINPERSID": "persistent_id",
}  # fmt: skip
