"""The run as one HTML page that needs nothing beside itself and asks nobody for anything.

Whatever comes from a run is escaped, and a policy in the page lets no script run but the one that is written here. It may
be written while the run is at work: it says then how far it is.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from string import Template

from nemo_sdg.evaluation.report import html, sections, whatif
from nemo_sdg.evaluation.report.evaluations import evaluations
from nemo_sdg.evaluation.report.html import text
from nemo_sdg.evaluation.report.result import Result
from nemo_sdg.evaluation.report.rows import Rows, read_rows
from nemo_sdg.evaluation.report.times import read_times
from nemo_sdg.store import commit_text

MOST_ROWS = 100_000
"""Rows of all rounds that a page has as numbers; beyond it a sample."""
PAIRED_ROWS = 10_000
"""Of these, rows of which it has the pairs of words."""
_HERE = Path(__file__).parent
_SCRIPTS = ("selection.js", "figures.js", "whatif.js")


def write(result: Result, most_rows: int = MOST_ROWS) -> Path:
    """Puts the page at RUN/report.html, whole, and returns its path."""
    path = result.folder / "report.html"
    commit_text(path, page(result, most_rows), "<!-- {} -->")
    return path


def page(result: Result, most_rows: int = MOST_ROWS) -> str:
    """The page.

    Args:
        most_rows: of all rounds, as numbers for another selection.
    """
    rounds = rows_of(result, most_rows)
    times = read_times(result.folder)
    parts = [
        ("asked", "What was asked", sections.asked(result)),
        ("measures", "Before and after, on held-out rows", evaluations(result)),
        ("rows", "Rows", sections.funnel(result)),
        ("scores", "Scores, before selection and after", sections.histograms(result, rounds)),
        ("examples", "Best, median and worst rows", sections.best_and_worst(rounds)),
        ("what", "What if", _what_if(result, rounds)),
        ("training", "Training", sections.training(result)),
        ("time", "Time", sections.time_and_tokens(times)),
        ("provenance", "Where it comes from", sections.provenance(result, rounds)),
        ("places", "Where things lie", sections.places_of(result)),
    ]
    made = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in made)
    body = "".join(f'<h2 id="{name}">{title}</h2><div class="card">{content}</div>' for name, title, content in made)
    head = f"<h1>{text(result.config.run.name)}</h1>{sections.state(result, rounds, times)}<nav>{links}</nav>"
    return _whole(
        text(result.config.run.name), f"{head}{sections.summary(result, times)}{body}", _script(result, rounds)
    )


def rows_of(result: Result, most_rows: int = MOST_ROWS) -> list[Rows]:
    """The rows of every round that has any; the room in the page is shared out over the rounds."""
    count = result.config.run.rounds
    share, paired = max(1, most_rows // count), max(1, PAIRED_ROWS // count)
    found = (read_rows(result.folder / f"round-{n}", n, result.config, share, paired) for n in range(count))
    return [rows for rows in found if rows is not None]


def _what_if(result: Result, rounds: list[Rows]) -> str:
    if not any(rows.decided for rows in rounds):
        return ""
    taken = whatif.taken(result.config.select)
    own = list(result.written.get("rules", {}))
    which = [f"<code>{text(name)}</code>" for name in taken] + [f"the rule <code>{text(name)}</code>" for name in own]
    said = (
        f"What {', '.join(which)} dropped stays dropped here, and what never came before it counts as passed; the fork "
        "decides that anew, and its rows may differ from these by that."
        if which
        else "Nothing else takes part in this run's selection, so that the ids are those of the fork."
    )
    revises = (
        "<p>This run has answers revised. Other limits or weights let other answers go back, so a fork that changes them "
        "asks the policy for these revisions anew; here the revisions count that are there.</p>"
    )
    revises = revises if result.config.revise.passes else ""
    return Template(_part("whatif.html")).substitute(TAKEN=said, REVISES=revises)


def _script(result: Result, rounds: list[Rows]) -> str:
    """The data and the program; empty where there is nothing to select from."""
    told = whatif.of_run(rounds, result.config)
    if told is None:
        return ""
    told["name"] = result.folder.absolute().name
    program = "\n".join(map(_part, _SCRIPTS))
    return f'<script type="application/json" id="data">{html.data(told)}</script><script>{program}</script>'


def _part(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _whole(title: str, body: str, script: str) -> str:
    program = script.rpartition("<script>")[2].removesuffix("</script>")
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'" if script else "script-src 'none'"
    # Styles stand in the elements of plots; nothing that they could name may be loaded.
    policy = f"default-src 'none'; {allowed}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{_part('page.css')}</style></head>"
        f"<body>{body}{script}</body></html>\n"
    )
