import io
import os
import select
import subprocess
import sys
import time

from nemo_sdg import console as module
from nemo_sdg.console import Console, format_table, log_file, tail


def test_only_rank_zero_speaks():
    stream = io.StringIO()
    silent = Console(stream, speaks=False, steady=True)
    silent.say("hello")
    silent.table("t", ["a"], [[1]])
    with silent.progress("work", 3) as work:
        work.advance()
    silent.close()
    assert stream.getvalue() == "" and work.done == 1


def test_a_short_activity_is_one_line():
    stream = io.StringIO()
    with Console(stream).progress("generate", 8) as work:
        for _ in range(8):
            work.advance(note="3 rows/s")
    assert stream.getvalue() == "generate  8 of 8 (100 %)  0 s  3 rows/s\n"


def test_no_long_silence_and_no_flood(monkeypatch):
    monkeypatch.setattr(module, "QUIET_S", 0.3)
    stream = io.StringIO()
    with Console(stream).progress("score", 1000) as work:
        for _ in range(100):
            work.advance()
            time.sleep(0.02)
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= 8, lines
    assert lines[0].startswith("  ... score  ") and lines[-1].startswith("score  100 of 1000 (10 %)")


def test_a_steady_console_reports_between_activities(monkeypatch):
    monkeypatch.setattr(module, "QUIET_S", 0.3)
    stream = io.StringIO()
    console = Console(stream, steady=True)
    time.sleep(0.8)
    console.close()
    assert "  ... working\n" in stream.getvalue()


def test_no_thread_is_left_to_be_forked():
    console = Console(io.StringIO())
    with console.progress("loading"):
        assert console._thread is not None
    assert console._thread is None


def test_markup_in_text_is_only_text():
    stream = io.StringIO()
    Console(stream).say("[bold]x[/bold] {y} <z>")
    assert stream.getvalue() == "[bold]x[/bold] {y} <z>\n"


def test_table_known_answer():
    text = format_table("Rows", ["stage", "rows", "share"], [["select", 12, 0.25], ["a", 3, 1.0]])
    assert text.splitlines() == [
        "Rows",
        "  stage   rows  share",
        "  ------  ----  -----",
        "  select    12  0.250",
        "  a          3  1.000",
    ]


def test_redirect_keeps_the_terminal_for_us(tmp_path):
    code = (
        "import os, sys, warnings\n"
        "from pathlib import Path\n"
        "from nemo_sdg.console import redirect\n"
        "console = redirect(Path(sys.argv[1]), int(sys.argv[2]))\n"
        "print('from python'); warnings.warn('a warning'); os.system('echo from a child')\n"
        "console.say('from us'); console.close()\n"
    )
    for rank, expected in ((0, "from us\n"), (1, "")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(rank)], capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr) == (expected, "")
        log = log_file(tmp_path, rank).read_text()
        assert "from python" in log and "a warning" in log and "from a child" in log and "from us" not in log
    assert sorted(os.listdir(tmp_path)) == ["rank-00000.log", "rank-00001.log"]


def test_tail(tmp_path):
    assert tail(tmp_path, 0) == ""
    log_file(tmp_path, 0).write_text("".join(f"line {i}\n" for i in range(100)))
    assert tail(tmp_path, 0).splitlines() == [f"line {i}" for i in range(80, 100)]


def test_bars_on_a_terminal():
    pty = __import__("pty")
    main_fd, terminal_fd = pty.openpty()
    with os.fdopen(terminal_fd, "w") as stream:
        console = Console(stream)
        assert console.terminal
        shown, until = b"", time.monotonic() + 20
        with console.progress("generate [x]", 4) as work:
            for _ in range(4):
                work.advance()
            while b"4/4" not in shown and time.monotonic() < until:  # the bar is drawn by a thread that may be late
                if select.select([main_fd], [], [], 0.1)[0]:
                    shown += os.read(main_fd, 65536)
            console.say("a line above the bar")
    try:
        while chunk := os.read(main_fd, 65536):
            shown += chunk
    except OSError:  # the terminal is closed and read to its end
        pass
    os.close(main_fd)
    assert b"generate [x]" in shown and b"4/4" in shown and b"a line above the bar" in shown
