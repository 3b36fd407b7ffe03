"""Bytes done, for the progress: in whole megabytes, with the rate, from several threads."""

from __future__ import annotations

import threading
import time

from nemo_sdg.console import Activity


class Meter:
    """Counts bytes into an activity whose total is in MB (10^6 bytes)."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._bytes = 0

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._show(self._bytes + num_bytes)

    def reach(self, num_bytes: int) -> None:
        """So many bytes are done in all."""
        with self._lock:
            self._show(max(self._bytes, num_bytes))

    def _show(self, num_bytes: int) -> None:
        self._bytes = num_bytes
        rate = num_bytes / 1e6 / max(time.monotonic() - self._started, 1e-3)
        self._activity.advance(round(num_bytes / 1e6) - self._activity.done, f"{rate:.0f} MB/s")
