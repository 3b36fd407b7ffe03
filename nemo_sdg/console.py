"""What a person sees: lines, tables and progress from rank 0; everything else goes to the rank's log.

NeMo, Megatron and the warnings of a dozen libraries print to file descriptors 1 and 2. `redirect` points
these at `logs/rank-00000.log` and keeps the terminal for our own lines. On a terminal, progress is a bar
that moves; elsewhere it is a line every few seconds, so that no silence is long and no log is flooded.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

QUIET_S = 4.0
"""Longest silence in seconds where there is no terminal; the promise to users is 5."""


class Activity:
    """Something that takes a while: its title, how far it is, and since when."""

    def __init__(self, title: str, total: int | None) -> None:
        self.title, self.total, self.done, self.note = title, total, 0, ""
        self.started = time.monotonic()
        self.task: Any = None

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Counts `n` more as done; `note` (a loss, a count) is shown behind the bar."""
        self.done += n
        if note is not None:
            self.note = note

    def line(self) -> str:
        """For example `generate  128 of 512 (25 %)  14 s  3.1 rows/s`."""
        seconds = time.monotonic() - self.started
        parts = [self.title]
        if self.total is not None:
            share = f" ({100 * self.done // self.total} %)" if self.total else ""
            parts.append(f"{self.done} of {self.total}{share}")
        parts.append(f"{seconds:.0f} s")
        if self.note:
            parts.append(self.note)
        return "  ".join(parts)


class Console:
    """Lines, tables and progress on one stream; a console that does not speak (`speaks=False`) prints nothing.

    Args:
        stream: where to print; by default the standard output of this moment.
        speaks: true on rank 0 only.
        steady: also report while no activity is named, until `close`: for a rank whose stages come and go.
        errors: where `fail` prints; by default the standard error of this moment.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        speaks: bool = True,
        steady: bool = False,
        errors: TextIO | None = None,
    ) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.errors = sys.stderr if errors is None else errors
        self.speaks = speaks
        self.terminal = speaks and self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._steady = steady and speaks
        self._activities: list[Activity] = []
        self._idle = Activity("working", None)
        self._lock = threading.RLock()
        self._last_line = time.monotonic()
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._bars: Any = None
        self._rich: Any = None
        if self._steady:
            self._start()

    def say(self, text: str = "") -> None:
        """Prints one line, or several, as they are."""
        if self.speaks:
            self._write(text)

    def fail(self, text: str) -> None:
        """Prints an error where errors go; any rank may, so that the one that failed can say why."""
        self.close()
        self.errors.write(text + "\n")
        self.errors.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Prints a table; a column whose cells are all numbers stands to the right."""
        if self.speaks:
            self._write(format_table(title, columns, rows))

    @contextmanager
    def progress(self, title: str, total: int | None = None) -> Iterator[Activity]:
        """Shows that something runs until the block ends; the caller counts with `advance`."""
        activity = Activity(title, total)
        if not self.speaks:
            yield activity
            return
        with self._lock:
            self._activities.append(activity)
            self._start()
        try:
            yield activity
        finally:
            with self._lock:
                self._activities.remove(activity)
                if self._bars is not None and activity.task is not None:
                    self._bars.remove_task(activity.task)
                self._write(activity.line())
            if not self._activities and not self._steady:
                self.close()

    def close(self) -> None:
        """Stops the thread that reports. Must have happened before a fork."""
        if self._stop is not None:
            self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._stop = self._thread = None
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _start(self) -> None:
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._report, args=(self._stop,), name="console", daemon=True)
            self._thread.start()

    def _report(self, stop: threading.Event) -> None:
        while not stop.wait(0.1 if self.terminal else 0.25):
            with self._lock:
                if stop.is_set():
                    return
                if self.terminal:
                    self._draw()
                elif time.monotonic() - self._last_line >= QUIET_S:
                    current = self._activities[-1].line() if self._activities else "working"
                    self._write(f"  ... {current}")

    def _draw(self) -> None:
        if self._bars is None:
            self._bars = _bars(self._rich_console())
            self._bars.start()
        if self._activities and self._idle.task is not None:
            self._bars.remove_task(self._idle.task)
            self._idle.task = None
        for activity in self._activities or [self._idle]:
            if activity.task is None:
                activity.task = self._bars.add_task(activity.title, total=activity.total, note="")
            self._bars.update(activity.task, completed=activity.done, note=activity.note)

    def _write(self, text: str) -> None:
        with self._lock:
            self._last_line = time.monotonic()
            if self._bars is not None:
                # The bars must be lifted while a line goes out above them.
                self._rich_console().print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                self.stream.write(text + "\n")
                self.stream.flush()

    def _rich_console(self) -> Any:
        if self._rich is None:
            import rich.console

            self._rich = rich.console.Console(file=self.stream)
        return self._rich


def _bars(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        redirect_stdout=False,  # what others print belongs into the log, not above our bars
        redirect_stderr=False,
    )


def size_text(count: int) -> str:
    """For example 682.4 GB."""
    for power, name in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {name}"
    return f"{count} bytes"


def format_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in plain characters: title, header, a rule, and aligned rows."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]

    def join(line: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right))
        return ("  " + "  ".join(padded)).rstrip()

    head = [title] if title else []
    return "\n".join([*head, join(columns), "  " + "  ".join("-" * w for w in widths), *map(join, cells)])


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def log_file(log_dir: Path, rank: int | None) -> Path:
    """Where a rank's output goes; None is the process that starts the local ranks."""
    return log_dir / ("launcher.log" if rank is None else f"rank-{rank:05d}.log")


def redirect(log_dir: Path, rank: int | None, *, terminal: Console | None = None) -> Console:
    """Sends all that this process prints to its log and returns the console that still reaches the terminal.

    Only rank 0 and the launcher (rank None) speak.

    Args:
        terminal: the console of the launcher that forked this rank: its streams are the terminal, for the
            launcher's own descriptors 1 and 2 point at a log already.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    stream, errors = (terminal.stream, terminal.errors) if terminal else (_copy(1), _copy(2))
    log = os.open(log_file(log_dir, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    name, started = "launcher" if rank is None else f"rank {rank}", time.strftime("%Y-%m-%d %H:%M:%S %z")
    os.write(log, f"---- {name}, process {os.getpid()}, started {started}\n".encode())
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(line_buffering=True)  # a killed rank must not lose its last lines
    return Console(stream, speaks=not rank, steady=rank == 0, errors=errors)


def _copy(descriptor: int) -> TextIO:
    return os.fdopen(os.dup(descriptor), "w", buffering=1, encoding="utf-8", errors="replace")


def tail(log_dir: Path, rank: int | None, lines: int = 20) -> str:
    """The last lines of a rank's log, for the launcher to show when that rank failed."""
    path = log_file(log_dir, rank)
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 200 * lines))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
