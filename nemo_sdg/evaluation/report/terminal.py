"""What `nemo-sdg report` prints."""

from __future__ import annotations

from nemo_sdg.console import Console
from nemo_sdg.evaluation.report.measures import ablation_rows, measures, shown
from nemo_sdg.evaluation.report.result import Result, places, reasons


def show(result: Result, console: Console) -> None:
    """Prints the summary: before and after, rows with reasons, and where things lie."""
    state = "finished" if result.finished else result.so_far("finished")
    console.say(f"{result.config.run.name}: {state}, fingerprint {result.fingerprint}")
    compared = measures(result)
    if compared:
        rounds = [f"round {number}" for number in sorted(result.evaluations)]
        rows = [(measure.name, *measure.cells(), measure.gained()) for measure in compared]
        console.table("held out, before and after", ["measure", "before", *rounds, "gain"], rows)
    for number, evaluation in sorted(result.evaluations.items()):
        for kind, gate in (evaluation.get("gate") or {}).items():
            console.say(f"gate of the {kind} of round {number}: {gate['why']}")
    if result.ablation is not None:
        title = f"the same training on other candidates of round 0, {result.ablation['seeds']} seeds"
        console.table(title, ["rows", "number", "measure"], ablation_rows(result))
    if result.rows:
        rows = [
            (str(r.round), r.stage, r.rows_in, r.kept, sum(r.dropped.values()), sum(r.faulty.values()), reasons(r))
            for r in result.rows
        ]
        console.table("rows", ["round", "stage", "in", "kept", "dropped", "set aside", "reasons"], rows)
    if result.revised:
        columns = ["round", "pass", "asked again", "better", "accepted now", "mean scalar before", "after"]
        rows = [
            (number, n, won["asked"], won["better"], won["accepted"], shown(won["before"]), shown(won["after"]))
            for number, passes in sorted(result.revised.items())
            for n, won in enumerate(passes, start=1)
        ]
        console.table("revision", columns, rows)
    console.say("where things lie")
    for what, path in places(result):
        console.say(f"  {what:<14} {result.folder / path}")
