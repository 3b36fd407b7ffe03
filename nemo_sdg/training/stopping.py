"""A fit that is told to stop finishes its step, saves a restart point, and ends as one that can be continued."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from nemo_sdg.parallel.launch import STOPS

class StopRequest:
    """Remembers, within its `with` block, that this process was told to stop.

    A signal that came too late to be heeded acts as it would have without the block, at the end of it.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        """The number of the signal that came to this rank."""
        self.agreed = False
        """Some rank was told to stop and all ranks know it: set once a step, on all of them in the same one."""
        self.heeded = False
        """The restart point is saved."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in STOPS}
        self.listen()
        return self

    def listen(self) -> None:
        """Takes the signals. Once more when a fit begins: Lightning has put a handler of its own before this one, which
        ends a rank by itself where the signal comes late in a step, with nothing saved."""
        for number in self._before:
            signal.signal(number, self._note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.asked is not None and not self.heeded and error is None:
            os.kill(os.getpid(), self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
