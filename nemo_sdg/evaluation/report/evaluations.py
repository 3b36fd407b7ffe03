"""What was measured on held-out rows, as tables with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_sdg.evaluation.report import html
from nemo_sdg.evaluation.report.html import text
from nemo_sdg.evaluation.report.measures import State, ablation_rows, at, attributes, measures, number, shown, states
from nemo_sdg.evaluation.report.measures import length_only as length_only_of
from nemo_sdg.evaluation.report.result import Result

_AGREEMENT = {
    "pearson": "Pearson", "spearman": "Spearman", "mae": "mean error", "calibrated_mae": "mean error, calibrated",
}  # fmt: skip
_DRIFT = {"shift": "shift of the mean", "ks": "Kolmogorov-Smirnov", "outside": "outside the range"}


def evaluations(result: Result) -> str:
    """All of it; empty where nothing was evaluated."""
    some = states(result)
    if not some:
        return ""
    times = ["before", *(f"round {number}" for number in sorted(result.evaluations))]
    rows = []
    for measure in measures(result):
        gained = round(measure.gain or 0.0, 3)
        colour = "up" if gained > 0 else "down" if gained < 0 else ""
        rows.append([text(measure.name), *measure.cells(), f'<b class="{colour}">{measure.gained()}</b>'])
    parts = [html.table(["measure", *times, "gain"], rows, range(1, len(times) + 2))] if rows else []
    parts += [_gates(result), _ablation(result), _wins(some, times), _rewardbench(some, times)]
    agreement = _by_attribute(some, times, "reward", _AGREEMENT)
    parts += [html.details("the reward model against people, per attribute", agreement)] if agreement else []
    drift = _by_attribute(some, times, "drift", _DRIFT, flag="drifted")
    parts += [f"<h3>Drift of the scores since the reward model that the run started from</h3>{drift}"] if drift else []
    return "".join(parts)


def _gates(result: Result) -> str:
    """Whether what a round has trained went on, and why."""
    rows = []
    for round_, state in sorted(result.evaluations.items()):
        for kind, one in (state.get("gate") or {}).items():
            verdict = '<b class="up">goes on</b>' if one["accepted"] else '<b class="down">the old one stays</b>'
            rows.append([str(round_), text(kind), verdict, text(one["why"])])
    return f"<h3>Gate between rounds</h3>{html.table(['round', 'what', '', 'why'], rows)}" if rows else ""


def _ablation(result: Result) -> str:
    """What three sets of candidates made of the same start."""
    rows = [[*map(text, row)] for row in ablation_rows(result)]
    if not rows:
        return ""
    title = f"Was the selection worth it? The same training on other candidates of round 0, {text(result.ablation['seeds'])} seeds"
    return f"<h3>{title}</h3>{html.table(['rows', 'number', 'held-out measure'], rows, range(1, 3))}"


def _wins(some: Sequence[State], times: Sequence[str]) -> str:
    """Wins, ties and losses against the policy that the run started from."""
    rows = []
    for when, state in zip(times, some):
        won = state.get("win_rate")
        if isinstance(won, Mapping) and number(won.get("win_rate")) is not None:
            counts = [str(won.get(name, "–")) for name in ("wins", "ties", "losses", "n")]
            rates = [_with_interval(won), _with_interval(won.get("controlled") or {})]
            rows.append([when, *map(text, counts), *rates])
    heads = ["", "wins", "ties", "losses", "prompts", "win rate", "of equal length"]
    return f"<h3>Win rate against the policy that the run started from</h3>{html.table(heads, rows, range(1, 7))}" if rows else ""


def _with_interval(told: Mapping[str, Any]) -> str:
    low, high = number(told.get("low")), number(told.get("high"))
    return shown(number(told.get("win_rate")), None if low is None or high is None else (low, high))


def _rewardbench(some: Sequence[State], times: Sequence[str]) -> str:
    """The sections beside what length alone gets, and the subsets folded away."""
    told = [(when, state["rewardbench"]) for when, state in zip(times, some) if state.get("rewardbench")]
    if not told:
        return ""
    length = length_only_of(some)
    sections = [
        name
        for name in ("Chat", "Chat Hard", "Safety", "Reasoning", "Overall")
        if any(name in found for _, found in told)
    ]
    rows = [
        [name, *(shown(number(found.get(name))) for _, found in told), shown(number(length.get(name)))]
        for name in sections
    ]
    heads = ["section", *(when for when, _ in told), "the longer answer"]
    made = f"<h3>RewardBench</h3>{html.table(heads, rows, range(1, len(heads)))}"
    subsets = dict.fromkeys(name for _, found in told for name in found.get("subsets") or {})
    rows = [
        [
            text(name),
            *(shown(number(at(found, "subsets", name, "accuracy"))) for _, found in told),
            text(at(told[-1][1], "subsets", name, "n") or ""),
        ]
        for name in subsets
    ]
    heads = ["subset", *(when for when, _ in told), "pairs"]
    return made + (html.details("its subsets", html.table(heads, rows, range(1, len(heads)))) if rows else "")


def _by_attribute(
    some: Sequence[State], times: Sequence[str], group: str, named: Mapping[str, str], flag: str = ""
) -> str:
    """A row for each attribute and figure of a group of the state."""
    names = dict.fromkeys(name for state in some for name in (state.get(group) or {}))
    ordered = [name for name in attributes(some) if name in names] + [
        name for name in names if name not in attributes(some)
    ]
    rows = []
    for name in ordered:
        for key, said in named.items():
            values = [number(at(state, group, name, key)) for state in some]
            if any(value is not None for value in values):
                rows.append([text(name), said, *map(shown, values)])
        if any(at(state, group, name, flag) for state in some) and flag:
            marks = ['<b class="down">yes</b>' if at(state, group, name, flag) else "no" for state in some]
            rows.append([text(name), flag, *marks])
    return html.table(["attribute", "figure", *times], rows, range(2, len(times) + 2)) if rows else ""
