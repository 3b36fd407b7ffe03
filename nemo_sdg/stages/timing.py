"""How long stages took, told to logs/events.jsonl: where one ends, and where a run stops within it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from nemo_sdg.stages.context import Context


@contextlib.contextmanager
def timed(context: Context, *names: str) -> Iterator[Callable[[str, dict[str, Any]], dict[str, Any]]]:
    """Within the block these stages are at work. What it gives is called with the name and the totals of each that has
    ended, and returns the totals.

    A stop or an error leaves the rows that are committed, and the next start counts them; so it leaves an event as well,
    or these rows would have taken no time. Its own cause is what is raised, whether the event could be written or not.
    """
    began, left = time.monotonic(), list(names)

    def event(what: str, name: str, **more: Any) -> None:
        seconds = round(time.monotonic() - began, 3)
        context.run.events(what, stage=name, **context.provenance, **more, seconds=seconds)

    def ended(name: str, totals: dict[str, Any]) -> dict[str, Any]:
        event("stage", name, totals=totals)
        left.remove(name)
        return totals

    try:
        yield ended
    except BaseException:
        with contextlib.suppress(Exception):
            for name in left:
                event("stopped", name)
        raise
