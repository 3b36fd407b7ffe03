"""The sections of the page, each as HTML; empty where a run has nothing to say of it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import numpy as np

from nemo_sdg.config import ATTRIBUTES, MISSING, RunConfig
from nemo_sdg.evaluation.report import html, plots
from nemo_sdg.evaluation.report.examples import examples
from nemo_sdg.evaluation.report.html import text
from nemo_sdg.evaluation.report.measures import measures, shown
from nemo_sdg.evaluation.report.result import BEFORE, Result, places, reasons
from nemo_sdg.evaluation.report.rows import Rows
from nemo_sdg.evaluation.report.times import Times
from nemo_sdg.store.fits import Fit, fits


def state(result: Result, rounds: Sequence[Rows], times: Times | None) -> str:
    """Whether it is done, and else how far it is."""
    count = result.config.run.rounds
    if result.finished:
        said = f"finished, {count} rounds" if count > 1 else "finished"
    else:
        said = f"not finished: {result.so_far()}"
        if times is not None:
            last = max(times.stages, key=lambda stage: max(end for _, end in stage.spans))
            said += f", the last stage that {'was stopped' if last.stopped else 'ended'} is {text(last.stage)}"
            said += f" of round {text(last.round)} at {_moment(times.ended)}"
    skipped = sum(rows.skipped for rows in rounds)
    left_out = (
        f'<p class="down">{skipped} parts of rows could not be read and are left out here.</p>' if skipped else ""
    )
    return f'<p class="under">{said}; seed {result.config.run.seed}, fingerprint {result.fingerprint}</p>{left_out}'


def summary(result: Result, times: Times | None) -> str:
    """The three numbers that a person wants."""
    cards = [_accepted(result), _gained(result), _pace(times)]
    made = (
        f'<div class="card"><div class="big">{big}</div><div>{what}</div>{_under(under)}</div>'
        for big, what, under in cards
    )
    return f'<div class="summary">{"".join(made)}</div>'


def _accepted(result: Result) -> tuple[str, str, str]:
    selected = [stage for stage in result.rows if stage.stage == "select"]
    if not selected:
        return "–", "accepted rows", "nothing was selected yet"
    kept, came = sum(stage.kept for stage in selected), sum(stage.rows_in for stage in selected)
    share = f"of {came:,} scored rows, {100 * kept / came:.1f} %" if came else "of none"
    target = result.config.select.target
    return f"{kept:,}", "accepted rows", share + (f"; the target of a round is {target:,}" if target else "")


def _gained(result: Result) -> tuple[str, str, str]:
    told = [measure for measure in measures(result) if measure.gain is not None]
    if not told:
        return "–", "gain on held-out rows", "nothing was evaluated yet"
    first = told[0]
    cells = first.cells()
    if first.refused:
        return first.gained(), text(first.name), f"{cells[0]} before; the gate let no new model go on"
    return first.gained(), text(first.name), f"{cells[0]} before, {cells[first.stands]} now"


def _pace(times: Times | None) -> tuple[str, str, str]:
    if times is None:
        return "–", "accepted rows an hour", "no stage has ended yet"
    rate, idle = times.accepted_per_hour(), times.idle
    under = f"{duration(times.wall)} in all" + ("" if idle is None else f", {100 * idle:.0f} % of it idle")
    return "–" if rate is None else _big(rate), "accepted rows an hour of making them", under


def _big(number: float) -> str:
    """Three digits and no false ones."""
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 10 else f"{number:.2g}"


def asked(result: Result) -> str:
    config, select = result.config, result.config.select
    brief, several = config.data.synthesis.brief, dict(config.generate.others)
    samples = config.generate.samples + sum(several.values())
    prompts = f"made for the brief <code>{text(brief)}</code>" if brief else f"<code>{text(config.data.prompts)}</code>"
    per_round = config.data.prompts_per_round
    told = {
        "prompts": prompts + ("" if per_round is None else f", {per_round:,} a round and wave"),
        "responses": f"{samples} to each prompt, {config.generate.max_tokens} tokens at most, "
        f"temperature {config.generate.temperature:g}",
        "accepted are": _limits(config),
        "aimed at": f"{select.target:,} accepted rows a round" if select.target else "whatever passes",
        "revised": f"at most {config.revise.passes} times, what is within {config.revise.margin:g} of its limits"
        if config.revise.passes
        else "nothing",
        "trained": "; ".join(_trained(fit, config) for fit in fits(config)) or "nothing",
        "rounds": str(config.run.rounds),
    }
    return html.pairs(told)


def _limits(config: RunConfig) -> str:
    select = config.select
    said = [f"{text(name)} ≥ {low:g}" for name, low in select.minimum.items()]
    said += [f"{text(name)} ≤ {high:g}" for name, high in select.maximum.items()]
    said += [f"scalar ≥ {select.minimum_scalar:g}"] if select.minimum_scalar is not None else []
    said += [f"the best {select.per_prompt} of a prompt"] if select.per_prompt is not None else []
    said += ["no text twice for a prompt"] if select.unique else []
    said += [f"no near duplicates ({select.near_duplicates:g})"] if select.near_duplicates is not None else []
    said += [f"{text(column)} at most {share:.0%}" for column, share in select.balance.items()]
    said += [f"nothing of {len(select.decontaminate)} evaluation files"] if select.decontaminate else []
    said += [f"at or above percentile {select.percentile:g}"] if select.percentile is not None else []
    weights = ", ".join(f"{text(name)} {weight:g}" for name, weight in select.weights.items())
    return (", ".join(said) or "all") + f'<div class="under">ranked by the scalar: {weights}</div>'


def _trained(fit: Fit, config: RunConfig) -> str:
    settings = fit.settings(config)
    what = {"sft": "SFT", "reward": f"reward model ({config.reward.objective})"}.get(
        fit.task, config.preference.objective.upper()
    )
    return f"{what}, {settings.steps:,} steps of {settings.global_batch_size} from {text(settings.start_from)}"


def funnel(result: Result) -> str:
    rows = []
    for stage in result.rows:
        counts = [
            f"{n:,}" for n in (stage.rows_in, stage.kept, sum(stage.dropped.values()), sum(stage.faulty.values()))
        ]
        share = html.bar(stage.kept / stage.rows_in if stage.rows_in else 0.0)
        rows.append([str(stage.round), text(stage.stage), *counts, share, text(reasons(stage))])
    heads = ["round", "stage", "in", "kept", "dropped", "set aside", "share kept", "reasons"]
    won = [
        [str(number), str(n), *(f"{one[key]:,}" for key in ("asked", "better", "accepted")),
         shown(one["before"]), shown(one["after"])]
        for number, passes in sorted(result.revised.items()) for n, one in enumerate(passes, start=1)
    ]  # fmt: skip
    columns = ["round", "pass", "asked again", "better", "accepted now", "mean scalar before", "after"]
    below = f"<h3>What revision won</h3>{html.table(columns, won, range(2, 7))}" if won else ""
    return html.table(heads, rows, (2, 3, 4, 5), "funnel") + below if rows else ""


def histograms(result: Result, rounds: Sequence[Rows]) -> str:
    select, parts = result.config.select, []
    for rows in rounds:
        kept, figures = rows.kept, []
        for name in dict.fromkeys((*ATTRIBUTES, *rows.scores)):
            values = np.array(rows.scores.get(name, ()), np.float64)
            there = np.isfinite(values) & (values != MISSING)
            if there.any():
                limits = (select.minimum.get(name), select.maximum.get(name))
                drawn = plots.histogram(
                    f"{name}, round {rows.round}", values[there], kept[there] if rows.decided else None, limits
                )
                means = f"{values[there].mean():.2f}" + (
                    f" → {values[there & kept].mean():.2f}" if (there & kept).any() else ""
                )
                figures.append(f"<figure><figcaption><b>{text(name)}</b>mean {means}</figcaption>{drawn}</figure>")
        count = f"{len(rows):,} scored rows" + (f", {np.count_nonzero(kept):,} kept" if rows.decided else " so far")
        parts.append(f'<h3>Round {rows.round}: {count}</h3><div class="plots">{"".join(figures)}</div>')
    key = '<p class="under key"><i class="all"></i>all scored rows<i class="kept"></i>kept; dashed: the limits</p>'
    return key + "".join(parts) if parts else ""


def best_and_worst(rounds: Sequence[Rows]) -> str:
    """The newest round, and the others folded away."""
    made = [(f"Round {rows.round}", examples(rows)) for rows in reversed(rounds)]
    if not made:
        return ""
    head = '<p class="under">By the scalar, of all scored rows; no text twice.</p>'
    return (
        head
        + f"<h3>{made[0][0]}</h3>{made[0][1]}"
        + "".join(html.details(title, content) for title, content in made[1:])
    )


def training(result: Result) -> str:
    named = {fit.folder: fit for fit in fits(result.config)}
    charts = []
    for folder in dict.fromkeys(folder for _, folder in result.losses):
        lines = {_when(number): losses for (number, kind), losses in result.losses.items() if kind == folder}
        dots = {
            _when(number): [(one["step"], one["loss"]) for one in told]
            for (number, kind), told in result.validations.items() if kind == folder
        }  # fmt: skip
        label = loss_name(named.get(folder), folder, result.config)
        drawn = plots.curves(label, lines, dots)
        if drawn:
            charts.append(f"<figure><figcaption>{text(label)}</figcaption>{drawn}</figure>")
    return f'<div class="fits">{"".join(charts)}</div>' if charts else ""


def loss_name(fit: Fit | None, folder: str, config: RunConfig) -> str:
    task = fit.task if fit else ("reward" if folder == "reward" else "sft")
    if task == "preference":
        return f"{config.preference.objective.upper()} loss of the policy, iteration {fit.iteration + 1}"
    regression = "squared error of the reward model"
    pairs = "Bradley-Terry loss of the reward model"
    return {"sft": "SFT loss of the policy"}.get(task, regression if config.reward.objective == "regression" else pairs)


def _when(number: int) -> str:
    return "before round 0" if number == BEFORE else f"round {number}"


def time_and_tokens(times: Times | None) -> str:
    if times is None:
        return ""
    rows = []
    for stage in times.stages:
        seconds = stage.seconds
        rate = f"{_big(stage.rows / seconds)} rows/s" if stage.rows and seconds > 0 else ""
        if stage.tokens and seconds > 0:
            rate = f"{_big(stage.tokens / seconds)} tokens/s" + (f", {rate}" if rate else "")
        cells = [f"{stage.tokens:,}" if stage.tokens else "", duration(seconds), rate]
        rows.append([text(stage.round), text(stage.stage), f"{stage.rows:,}" if stage.rows else "", *cells])
    rates = [
        f"round {text(number)}: {_big(rate)}" for number in sorted({stage.round for stage in times.stages})
        if (rate := times.accepted_per_hour(number)) is not None
    ]  # fmt: skip
    idle = "not known" if times.idle is None else f"{100 * times.idle:.1f} %"
    told = {
        "from first to last": f"{duration(times.wall)}, {_moment(times.began)} to {_moment(times.ended)}",
        "idle": idle + _under("the share of that in which no stage was at work that came to its end or was stopped: "
                              "starts, loading, and what a kill threw away"),
        "accepted rows an hour": ("; ".join(rates) or "–") + _under("over the hours in which prompts, responses, scores, "
                                                                    "verdicts and decisions were made"),
        "generated": f"{times.tokens:,} tokens",
    }  # fmt: skip
    return html.pairs(told) + html.table(["round", "stage", "rows", "tokens", "time", "rate"], rows, (2, 3, 4, 5))


def provenance(result: Result, rounds: Sequence[Rows]) -> str:
    written, config = result.written, result.config
    digests: dict[str, set[str]] = {"policy": set(), "reward": set()}
    for rows in rounds:
        for role, digest in rows.makers:
            digests.setdefault(role, set()).update([] if digest == "None" else [digest])
    models = {name: path for name in ("base", "instruct", "reward", "judge") if (path := getattr(config.models, name))}
    inputs = written.get("inputs") or {}
    told = {
        f"{name} model": f"<code>{text(path)}</code> {_code(inputs.get(f'models.{name}'))}"
        for name, path in models.items()
    }
    told |= {f"rows say {role}": ", ".join(map(_code, sorted(found))) for role, found in digests.items() if found}
    told |= {key: _code(digest) for key, digest in inputs.items() if not key.startswith("models.") and digest}
    told |= {f"rule {name}": _code(digest) for name, digest in (written.get("rules") or {}).items()}
    versions = ", ".join(f"{name} {version}" for name, version in (written.get("versions") or {}).items())
    told |= {"versions": text(versions), "fingerprint": _code(result.fingerprint), "seed": str(config.run.seed)}
    told |= {
        "topology": f"tp {config.topology.tp} x pp {config.topology.pp}",
        "licence of the rows": text(config.data.licence),
    }
    return html.pairs(told)


def places_of(result: Result) -> str:
    rows = [[text(what), f"<code>{text(path)}</code>"] for what, path in places(result)]
    return html.table(["what", "path inside the run"], rows)


def _under(said: str) -> str:
    return f'<div class="under">{said}</div>'


def _code(value: object) -> str:
    return "" if value is None else f"<code>{text(value)}</code>"


def duration(seconds: float) -> str:
    """For example 0.4 s, 12 s, 7 min 5 s or 3.5 h."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
