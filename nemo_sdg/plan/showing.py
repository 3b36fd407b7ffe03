"""How a plan is shown: first what is done and what it takes, then, if asked for, where each figure comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemo_sdg.console import Console
from nemo_sdg.parallel.topology import PHASES
from nemo_sdg.plan.course import Took
from nemo_sdg.plan.memory import merged
from nemo_sdg.plan.notes import not_in_the_time
from nemo_sdg.plan.placements import Placement, more_ranks
from nemo_sdg.plan.units import bytes_text, time_text

if TYPE_CHECKING:
    from nemo_sdg.plan.making import Plan

_MEMORY = ("weights", "KV cache", "gradients", "optimizer", "activations", "buffers", "at most")


def show(plan: Plan, console: Console, details: bool) -> None:
    """Prints a plan."""
    training = ", ".join(f"{kind} {count:,} tokens" for kind, count in plan.training_tokens.items()) or "none"
    console.say(f"plan of {plan.name}: {plan.rounds} rounds, seed {plan.seed}, fingerprint {plan.fingerprint}")
    console.say(f"  ranks     {plan.grids.train}, {plan.dtype}{_on(plan)}")
    for phase in PHASES:
        grid = getattr(plan.grids, phase)
        if any(model.role == phase for model in plan.models) and grid != plan.grids.train:
            console.say(f"  {phase:<9} {grid}, ranks {grid.ranks[0]} to {grid.ranks[-1]}")
    console.say(f"  a round   {_rows(plan)}")
    if plan.target is not None:
        console.say(f"  target    {plan.target}")
    console.say(f"  training  at most, in a round: {training}")
    if plan.models:
        console.say(f"  weights   {bytes_text(plan.bytes_to_read())} to read per replica in round 0")
        _show_memory(plan, console)
        _show_disk_and_time(plan, console)
    for note in plan.notes:
        console.say(f"  note: {note}")
    if details and plan.models:
        _show_details(plan, console)


def _on(plan: Plan, nodes: int | None = None) -> str:
    if not plan.machine.gpu:
        return ""
    nodes = nodes or plan.machine.nodes(plan.ranks)
    return f", {nodes} node{'s' if nodes > 1 else ''} of {plan.machine.ranks_per_node} x {plan.machine.name}"


def _rows(plan: Plan) -> str:
    if plan.prompts is None:
        return "as many prompts as there will be"
    counts = f"{plan.prompts:,} prompts, {plan.responses:,} responses, at most {plan.response_tokens:,} tokens generated"
    return counts if plan.exact else f"about {counts}"


def _show_memory(plan: Plan, console: Console) -> None:
    rows = []
    for name, s in plan.phases:
        parts = (s.weights, s.kv_cache, s.gradients, s.optimizer, s.activations + s.between, s.buffers, s.total)
        rows.append((name, *(bytes_text(part) if part else "-" for part in parts)))
    console.table("  memory of the fullest rank of each phase", ("phase", *_MEMORY), rows)
    parts = [f"{bytes_text(plan.peak.working)} to generate and score ({plan.placement})"] if plan.peak.working else []
    parts += [f"{bytes_text(plan.peak.training)} to train"] if plan.peak.training else []
    usable = f"; a rank can use {bytes_text(plan.machine.usable_bytes)}" if plan.machine.gpu else ""
    console.say(f"  memory    at most, on a rank: {', '.join(parts)}{usable}")
    if plan.peak.waiting:
        has = f"a node has {bytes_text(plan.machine.host_memory_bytes)} for {plan.machine.ranks_per_node} ranks"
        has += "" if plan.machine.waiting_fits(plan.peak.waiting) else ", which is too little"
        console.say(f"  waiting   at most {bytes_text(plan.peak.waiting)} in host memory, on a rank; {has}")
    if not plan.fits_in:
        console.say(f"  does not fit on {plan.machine.name}:")
        for line in _ways_out(plan):
            console.say(f"    {line}")


def _ways_out(plan: Plan) -> list[str]:
    """What would fit, by phase."""
    found, nearest = plan.placements
    best: dict[str, Placement] = {}
    for one in found:
        best.setdefault(one.phase, one)
    told = [
        f"{phase}: TP x PP x DP of {one.grid} on {plan.sought} ranks{f', {one.how},' if one.how else ''} takes"
        f" {bytes_text(one.num_bytes)}" for phase, one in best.items()
    ]  # fmt: skip
    told += [
        f"{phase}: no placement of {plan.sought} ranks does; {one.grid} comes nearest with {bytes_text(one.num_bytes)}"
        for phase, one in nearest.items() if one is not None
    ]  # fmt: skip
    if nearest.get("train") is not None and (more := more_ranks(plan.course, plan.sought)) is not None:
        ranks = sum(grid.size for grid in more.grids)
        told.append(f"train: {ranks} ranks as {more.grid} take {bytes_text(more.num_bytes)}")
    return told


def _show_disk_and_time(plan: Plan, console: Console) -> None:
    at_the_end, files = plan.disk.at_the_end
    most, what = plan.disk.most
    fullest = f", at most {bytes_text(most)} with the {what}" if what else ""
    console.say(f"  disk      {bytes_text(at_the_end)} in {files:,} files at the end{fullest}")
    hours = f" = {plan.ranks * plan.seconds / 3600:,.1f} GPU-hours" if plan.machine.gpu else ""
    console.say(f"  time      about {time_text(plan.seconds)}{hours}")
    for when, parts in (("once", plan.once), ("a round", plan.parts)):
        if parts:
            console.say(f"    {when:<8}{', '.join(f'{part.name} {time_text(part.seconds)}' for part in parts)}")
    left_out = not_in_the_time(plan.course.config, counted=plan.course.asked is not None)
    console.say(f"    not in it: {', '.join(left_out)}")


def _show_details(plan: Plan, console: Console) -> None:
    columns = ("model", "parameters", "bytes to read", "files", "folder")
    rows = [(m.role, f"{m.parameters:,}", *m.loading.totals(), f"{m.where}{m.aside}") for m in plan.models]
    console.table(f"  weights: {bytes_text(plan.bytes_to_read())} to read per replica in round 0", columns, rows)
    console.say(f"  {_proof(plan)}")
    rows = [(m.role, label, *stage.cells()) for m in plan.models for label, stage in merged(m.stages)]
    columns = ("phase", "stage", "to read", "files", "byte ranges", "parameters", "weights")
    columns += ("gradients+optimizer", "KV cache")
    console.table("  each rank of a phase's stage, without activations", columns, rows)
    rows = [
        (one.name, bytes_text(one.num_bytes), f"{one.files:,}", one.when + (", stays" if one.stays else ""))
        for one in plan.disk.items
    ]  # fmt: skip
    console.table("  disk", ("what", "bytes", "files", "when"), rows)
    rows = [
        (when, p.name, time_text(p.seconds), time_text(p.loading), f"{p.tokens:,.0f}", _per_second(p, plan.ranks))
        for when, parts in (("once", plan.once), ("a round", plan.parts)) for p in parts
    ]  # fmt: skip
    columns = ("when", "what", "time", "of it models", "tokens", "tokens/s and rank")
    console.table("  time, by what is expected of the data", columns, rows)
    _show_placements(plan, console)
    _show_assumptions(plan, console)


def _per_second(part: Took, ranks: int) -> str:
    return f"{part.tokens / part.seconds / ranks:,.1f}" if part.tokens else ""


def _show_placements(plan: Plan, console: Console) -> None:
    found, nearest = plan.placements
    rows = [
        (one.phase, one.grid, one.how, bytes_text(one.num_bytes), time_text(one.seconds), _ours(plan, one)) for one in found
    ]
    columns = ("phase", "TP x PP x DP", "placement", "memory a rank", "a round", "")
    if rows:
        console.table(f"  placements that fit, best first{_on(plan, plan.course.config.hardware.nodes)}", columns, rows)
    for phase, one in nearest.items():
        if one is not None:
            console.say(f"  {phase}: nothing fits; {one.grid} comes nearest with {bytes_text(one.num_bytes)} on a rank")


def _ours(plan: Plan, one: Placement) -> str:
    return "this run's" if one.is_of(plan.course) else ""


def _show_assumptions(plan: Plan, console: Console) -> None:
    machine, asked, expect = plan.machine, plan.course.asked, plan.course.config.expect
    rows = [(f"hardware.{key}", f"{value:g}", machine.sources[key]) for key, value in machine.numbers.items()]
    if asked is not None:
        told = "set" if expect.prompt_tokens else "bytes of the prompts"
        rows.append(("expect.prompt_tokens", f"{asked.prompt_tokens:g}", told))
        told = "set" if expect.response_tokens else "half of generate.max_tokens"
        rows.append(("expect.response_tokens", f"{asked.response_tokens:g}", told))
    if plan.course.fits:
        row = f"{expect.row_tokens:g}" if expect.row_tokens else "max_length / 2"
        told = "set" if expect.row_tokens else "half of what a row may have"
        rows.append(("expect.row_tokens", row, told))
        known, pads = expect.longest_row_tokens, plan.grids.train.pp > 1
        told = "set" if known else "a pipeline pads rows to max_length" if pads else "padding is not counted"
        rows.append(("expect.longest_row_tokens", f"{known:g}" if known else "max_length" if pads else "none", told))
    rows.append(("expect.bytes_per_token", f"{expect.bytes_per_token:g}", "set, or the usual"))
    console.table(f"  assumed of {machine.name}", ("setting", "value", "from"), rows)


def _proof(plan: Plan) -> str:
    """In words what `plan.loading` has checked; without it there is no plan."""
    copied, tp = max((model.loading.copied_bytes, model.grid.tp) for model in plan.models)
    copies = f" ({bytes_text(copied)} of norms by each of {tp} TP ranks)" if tp > 1 else ""
    return f"every byte of every tensor is read exactly once per replica, by the rank that holds it{copies}"
