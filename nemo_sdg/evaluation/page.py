"""The run as one HTML page that needs nothing beside itself. Whatever comes from a run is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from nemo_sdg.evaluation import report
from nemo_sdg.evaluation.curve import svg
from nemo_sdg.evaluation.report import Result, StageRows
from nemo_sdg.store import commit_text
from nemo_sdg.store.fits import fits

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#60646c;--line:#d9d9e0;--ground:#fcfcfd;--card:#fff;--mark:#76b900}
@media(prefers-color-scheme:dark){:root{--ink:#edeef0;--soft:#a3a6ad;--line:#363a3f;--ground:#111113;--card:#18191b}}
body{margin:0 auto;max-width:60rem;padding:2rem 1rem;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{margin:0}h2{margin:2.5rem 0 .5rem;font-size:1.15rem}p.under{color:var(--soft);margin:.2rem 0 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:1rem;overflow-x:auto}
table{border-collapse:collapse;width:100%}th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tr:last-child td{border:0}
.bar{display:flex;height:.7rem;min-width:8rem;background:var(--line);border-radius:.35rem;overflow:hidden}
.bar i{background:var(--mark)}.up{color:#3f7d00}.down{color:#c2410c}code{font-size:.9em}
svg{width:100%;height:auto}svg text{font-size:11px;fill:var(--soft)}svg .grid{stroke:var(--line)}
.legend span{margin-right:1rem}.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem;border-radius:.2rem}
"""


def write(result: Result) -> Path:
    """Puts the page at RUN/report.html, whole, and returns its path."""
    path = result.folder / "report.html"
    commit_text(path, html(result), "<!-- {} -->")
    return path


def html(result: Result) -> str:
    config = result.config
    topology = f"tp {config.topology.tp} x pp {config.topology.pp}"
    under = f"{config.run.rounds} rounds, {topology}, seed {config.run.seed}, fingerprint {result.fingerprint}"
    sections = [
        ("Before and after, on held-out rows", _measures(result)),
        ("Rows", _funnel(result.rows)),
        ("Training loss", _losses(result)),
        ("Where things lie", _places(result)),
    ]
    body = "".join(f'<h2>{title}</h2><div class="card">{content}</div>' for title, content in sections if content)
    name = escape(config.run.name)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}</style></head>"
        f'<body><h1>{name}</h1><p class="under">{escape(under)}</p>{body}</body></html>\n'
    )


def _measures(result: Result) -> str:
    rows = []
    for name, values in report.measures(result):
        before, after = values[0], values[-1]
        cells = [escape(name), *("-" if v is None else f"{v:.3f}" for v in values)]
        gain = None if before is None or after is None else after - before
        cells.append("-" if gain is None else f'<b class="{"up" if gain >= 0 else "down"}">{gain:+.3f}</b>')
        rows.append(cells)
    heads = ["measure", "before", *(f"round {number}" for number in sorted(result.evaluations)), "gain"]
    return _table(heads, rows, numbers=range(1, len(heads))) if rows else ""


def _funnel(stages: Sequence[StageRows]) -> str:
    rows = []
    for stage in stages:
        share = 100 * stage.kept / stage.rows_in if stage.rows_in else 0
        bar = f'<div class="bar"><i style="width:{share:.1f}%"></i></div>'
        aside = sum(stage.faulty.values())
        counts = [f"{n:,}" for n in (stage.rows_in, stage.kept, sum(stage.dropped.values()), aside)]
        rows.append([str(stage.round), escape(stage.stage), *counts, bar, escape(report.reasons(stage))])
    heads = ["round", "stage", "in", "kept", "dropped", "set aside", "share kept", "reasons"]
    return _table(heads, rows, numbers=(2, 3, 4, 5)) if rows else ""


def _losses(result: Result) -> str:
    charts = []
    for fit in fits(result.config):
        label = {"sft": "SFT loss of the policy", "reward": "squared error of the reward model"}.get(fit.task)
        label = label or f"{result.config.preference.objective.upper()} loss of the policy, iteration {fit.iteration + 1}"
        lines = {f"round {number}": losses for (number, kind), losses in result.losses.items() if kind == fit.folder}
        if lines:
            charts.append(f"<p>{label}</p>{svg(lines, label)}")
    return "".join(charts)


def _places(result: Result) -> str:
    rows = [[escape(what), f"<code>{escape(path)}</code>"] for what, path in report.places(result)]
    return _table(["what", "path inside the run"], rows, numbers=())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] | range) -> str:
    """Cells are HTML already; columns in `numbers` stand to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    return f"<table>{line(heads, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
