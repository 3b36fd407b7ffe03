"""Plots by matplotlib as SVG text that stands inside a page: its texts stay texts, and its colours follow the page.

The same numbers give the same bytes. Nothing in it names an address.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_sdg.evaluation.report.html import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#6aa500", "#3b82f6", "#d97706", "#8b5cf6", "#db4a94", "#0d9f8f")
_FOLLOWS = {"#010203": "currentColor", "#010204": "var(--line)", "#010205": "var(--all)", "#010206": "var(--mark)"}
"""Colours that stand for those of the page, light or dark."""
_INK, _LINE, _ALL, _KEPT = _FOLLOWS
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "nemo_sdg", "text.parse_math": False, "font.size": 8, "text.color": _INK,
    "axes.edgecolor": _LINE, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.unicode_minus": False, "path.simplify": True, "lines.linewidth": 1.2,
    "xtick.major.size": 2, "ytick.major.size": 2, "legend.frameon": False, "legend.fontsize": 7,
}  # fmt: skip
WIDTH = 0.25
"""Of a bin of scores, where these lie within `_BINS` of them."""
_BINS = 400
_POINTS = 400
"""Of a line at most; more are averaged."""


def bins(values: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(edges, counts of all, counts of those that were kept): a score lies in the bin that begins at or below it. Bins are
    wider, by a power of two, where one score lies far away."""
    width = _width(float(values.min()), float(values.max())) if len(values) else WIDTH
    low, high = (math.floor(values.min() / width), math.floor(values.max() / width) + 1) if len(values) else (0, 16)
    edges = np.arange(low, high + 1) * width
    places = np.floor(values / width).astype(np.int64) - low
    return edges, np.bincount(places, minlength=high - low), np.bincount(places[kept], minlength=high - low)


def _width(low: float, high: float) -> float:
    width = WIDTH
    # The second so that neighbouring edges are different numbers.
    while not (high / width - low / width < _BINS and max(abs(low), abs(high)) / width < 2**50):
        width *= 2
    return width


def histogram(name: str, values: np.ndarray, kept: np.ndarray | None, limits: Iterable[float | None]) -> str:
    """Scores before selection and after.

    Args:
        kept: which of them were kept; None before selection.
        limits: of the settings, as lines.
    """
    edges, before, after = bins(values, np.zeros(len(values), bool) if kept is None else kept)
    with _drawing(2.6, 1.5) as (figure, axes):
        axes.stairs(before, edges, fill=True, color=_ALL)
        if kept is not None:
            axes.stairs(after, edges, fill=True, color=_KEPT, alpha=0.85)
        for limit in limits:
            if limit is not None:
                axes.axvline(limit, color=_INK, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.set_xlim(min(edges[0], 0.0), max(edges[-1], 4.0))
        axes.set_ylim(0, max(before.max(), 1) * 1.08)
        axes.locator_params(axis="y", nbins=3, integer=True)
        return _svg(figure, name)


def curves(name: str, lines: Mapping[str, Sequence[float]], dots: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Lines over the steps from 1, and what validation told after some steps; values that are not finite are left out.
    Empty where nothing is left."""
    thinned = {label: _thinned(values) for label, values in lines.items()}
    told = {label: [(step, value) for step, value in points if math.isfinite(value)] for label, points in dots.items()}
    if not any(thinned.values()) and not any(told.values()):
        return ""
    colours = {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(dict.fromkeys((*lines, *dots)))}
    with _drawing(5.6, 2.3) as (figure, axes):
        for label, points in thinned.items():
            if points:
                axes.plot(*zip(*points), color=colours[label], label=label, marker="" if len(points) > 1 else "o")
        for label, points in told.items():
            if points:
                axes.plot(
                    *zip(*points),
                    color=colours[label],
                    label=f"{label}, validation",
                    linestyle="--",
                    marker="o",
                    markersize=3,
                )
        axes.set_xlabel("step")
        axes.locator_params(axis="x", nbins=8, integer=True)
        axes.grid(axis="y", color=_LINE, linewidth=0.5)
        figure.legend(loc="outside upper right", ncols=4)
        return _svg(figure, name)


def _thinned(values: Sequence[float]) -> list[tuple[float, float]]:
    points = [(float(step), value) for step, value in enumerate(values, start=1) if math.isfinite(value)]
    size = math.ceil(len(points) / _POINTS)
    chunks = [np.array(points[at : at + size]) for at in range(0, len(points), size)] if size else []
    return [tuple(chunk.mean(axis=0).tolist()) for chunk in chunks]


class _drawing:
    """One figure of so many inches, in the style of the page."""

    def __init__(self, width: float, height: float) -> None:
        self._size = width, height

    def __enter__(self) -> tuple[Figure, Axes]:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it speaks of its font cache
        import matplotlib
        from matplotlib.figure import Figure

        self._style: Any = matplotlib.rc_context(_STYLE)
        self._style.__enter__()
        figure = Figure(figsize=self._size, layout="constrained")
        return figure, figure.add_subplot()

    def __exit__(self, *error: Any) -> None:
        self._style.__exit__(*error)


def _svg(figure: Figure, name: str) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    head, _, rest = drawn.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)[0]
    rest = re.sub(r"<!--.*?-->|<defs>\s*<style.*?</defs>|<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(
        r' id="[A-Za-z.]*[a-z]\d*(_\d+)+"| id="[A-Za-z0-9.]*_\d+"', "", rest
    )  # of groups that nothing refers to
    rest = re.sub(r"font-family: [^;\"]*; ?", "", rest)  # the page's
    rest = re.sub(r"(\d\.\d\d)\d+", r"\1", rest)
    rest = re.sub(r"\n\s*", "\n", rest)
    for drawn_in, shown_in in _FOLLOWS.items():
        rest = rest.replace(drawn_in, shown_in)
    return f'<svg class="plot" {box} role="img" aria-label="{text(name)}">{rest.strip()}'
