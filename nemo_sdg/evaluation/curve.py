"""Training curves as SVG text: no script, no font, no file beside the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#76b900", "#1f6feb", "#b45309", "#7c3aed", "#be185d", "#0f766e")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 560, 220, 48, 28, 12


def svg(lines: Mapping[str, Sequence[float]], y_label: str) -> str:
    """One chart with a line per name over the steps; values that are not finite are left out."""
    points = {
        name: [(step, value) for step, value in enumerate(values, start=1) if math.isfinite(value)]
        for name, values in lines.items()
    }
    everything = [point for line in points.values() for point in line]
    if not everything:
        return ""
    steps = max(max(step for step, _ in everything), 2)
    low, high = min(value for _, value in everything), max(value for _, value in everything)
    high = high if high > low else low + 1.0

    def x(step: float) -> float:
        return round(_LEFT + (step - 1) / (steps - 1) * (_WIDTH - _LEFT - 8), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_label, quote=True)}">']
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y(value)}" y2="{y(value)}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:.3g}</text>')
    for step, anchor in ((1, "start"), (steps, "end")):
        parts.append(f'<text x="{x(step)}" y="{_HEIGHT - 8}" text-anchor="{anchor}">step {step}</text>')
    for (name, line), colour in zip(points.items(), _cycle(len(points))):
        path = " ".join(f"{x(step)},{y(value)}" for step, value in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"><title>{escape(name)}</title></polyline>'
        )
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(points, _cycle(len(points)))
    )
    return "".join(parts) + f'<p class="legend">{legend}</p>'


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
