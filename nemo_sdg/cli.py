"""The verbs that people type. Nothing here imports torch or NeMo until a verb starts its ranks.

`main` is the one place that turns an exception into words: a mistake of the user is one line on standard
error and exit status 2; anything else is ours, leaves its traceback in a file and exits with 1.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import List, Optional

import typer

from nemo_sdg import row_commands
from nemo_sdg.errors import ConfigError, UserError
from nemo_sdg.serve import command as serving

app = typer.Typer(
    name="nemo-sdg",
    help="Generate synthetic data with Nemotron, score and filter it, and train your own models on it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in plain text: rich costs more to import than the whole answer may take
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130
"""The exit status of a program that was interrupted (128 + SIGINT)."""

STAGES = ("start", "prompts", "generate", "score", "judge", "revise", "select", "compare", "assemble", "train", "evaluate", "ablate")

_RECIPE = typer.Argument(help="A name from recipes/, or a path to a .py or .yaml file.")
_OVERRIDES = typer.Argument(None, metavar="[KEY=VALUE]...", help="Settings that differ from the recipe.")
_OUT = typer.Option(None, "--out", metavar="DIR", help="Folder of the run; by default one named after the recipe.")

_THREADS = typer.Option(None, "--threads", min=1, help="Files at a time; by default one per core, 8 at most.")


@app.command()
def run(
    recipe: str = _RECIPE,
    overrides: List[str] = _OVERRIDES,
    out: Optional[Path] = _OUT,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Build every rank without memory, hold it against the plan, and do nothing else."
    ),
) -> int:
    """Whole rounds; continues what the folder already holds."""
    from nemo_sdg import verbs

    if dry_run:
        return verbs.dry_run(recipe, overrides or [])
    return verbs.run(recipe, overrides or [], _run_folder(recipe, out))


@app.command()
def stage(
    name: str = typer.Argument(metavar="STAGE", help=f"One of {', '.join(STAGES)}."),
    recipe: str = _RECIPE,
    overrides: List[str] = _OVERRIDES,
    out: Optional[Path] = _OUT,
    round_: int = typer.Option(0, "--round", min=0, help="The round that the stage belongs to."),
) -> int:
    """One stage of a round, on what the stages before it have committed: of all waves and revisions that are as far."""
    from nemo_sdg import verbs

    if name not in STAGES:
        raise ConfigError("there is no such stage", found=repr(name), expected=f"one of {', '.join(STAGES)}")
    return verbs.run(recipe, overrides or [], _run_folder(recipe, out), stage=name, round_=round_)


@app.command()
def fork(
    run: Path = typer.Argument(metavar="RUN", help="Folder of a run."),
    new: Path = typer.Argument(metavar="NEW", help="Folder of the new run."),
    overrides: List[str] = _OVERRIDES,
) -> int:
    """A new run that takes over every stage which the changed settings leave as it is."""
    from nemo_sdg import fork as forking

    return forking.fork(run, new, overrides or [])


for verb in (row_commands.generate, row_commands.score, row_commands.select, row_commands.evaluate, serving.serve):
    app.command()(verb)


@app.command()
def download(
    name: str = typer.Argument(
        metavar="OWNER/NAME", help="A model or dataset on Hugging Face; datasets/OWNER/NAME too."
    ),
    folder: Path = typer.Argument(metavar="DIR", help="The folder to make."),
    revision: Optional[str] = typer.Option(None, "--revision", help="Branch, tag or commit; by default main."),
    include: List[str] = typer.Option([], "--include", metavar="GLOB", help="Only files of such names; repeatable."),
) -> int:
    """A checkpoint or dataset from Hugging Face, at one commit, every byte verified; continues what it began."""
    from nemo_sdg import download as downloading
    from nemo_sdg.console import Console
    from nemo_sdg.session import rank

    return downloading.download(name, folder, revision, include, Console(speaks=rank() == 0))


@app.command()
def plan(
    recipe: str = _RECIPE,
    overrides: List[str] = _OVERRIDES,
    ranges: Optional[Path] = typer.Option(
        None, "--ranges", metavar="FILE", help="Also write the byte ranges that each rank reads, as JSON lines."
    ),
    details: bool = typer.Option(False, "--details", help="Also where each figure comes from, and which placements fit."),
) -> None:
    """Ranks, rows, tokens, memory per rank, disk and time, before anything starts."""
    from nemo_sdg import plan as planning
    from nemo_sdg.config import load
    from nemo_sdg.console import Console
    from nemo_sdg.session import rank
    from nemo_sdg.store import commit_rows

    made = planning.make(load(recipe, overrides or []), files=False)
    if ranges is not None and rank() == 0:
        commit_rows(ranges, made.ranges())
    made.show(Console(speaks=rank() == 0), details)


@app.command()
def calibrate(
    out: Path = typer.Argument(metavar="FILE", help="The file to write, for hardware.calibration."),
    dtype: Optional[str] = typer.Option(None, "--dtype", help="fp64, fp32 or bf16; by default bf16 on a GPU, else fp32."),
    ranks: Optional[int] = typer.Option(None, "--ranks", min=1, help="At work together; by default one for each GPU or core."),
    threads: Optional[int] = typer.Option(None, "--threads", min=1, help="Threads of a rank; by default its share of the cores."),
) -> int:
    """How fast this machine is, for plan: a minute of small models in the engine and the trainer."""
    from nemo_sdg import calibrate as calibrating

    if dtype not in (None, "fp64", "fp32", "bf16"):
        raise ConfigError("there is no such dtype", where="--dtype", found=dtype, expected="one of fp64, fp32, bf16")
    return calibrating.calibrate(out, dtype, ranks, threads)


@app.command()
def clean(
    folder: Path = typer.Argument(metavar="RUN", help="Folder of a run."),
    overrides: List[str] = typer.Argument(None, metavar="[keep.KEY=VALUE]...", help="What stays, if not as the run says."),
    yes: bool = typer.Option(False, "--yes", help="Delete what is listed."),
) -> int:
    """What of a run may be deleted, by its settings `keep`, and how large it is; deletes it with --yes."""
    from nemo_sdg import clean as cleaning
    from nemo_sdg.console import Console
    from nemo_sdg.session import rank

    return 0 if rank() != 0 else cleaning.clean(folder, overrides or [], Console(), yes=yes)


@app.command()
def show(
    recipe: Optional[str] = typer.Argument(None, help="A name from recipes/, or a path; by default their list."),
    words: List[str] = typer.Argument(None, metavar="[KEY=VALUE | KEY]...", help="Changes, and beginnings of keys to list."),
    diff: Optional[str] = typer.Option(None, "--diff", metavar="OTHER", help="Only what differs from this recipe."),
) -> None:
    """The recipes, or every setting of one: its value, where that is from, its default and its meaning."""
    from nemo_sdg import show as showing
    from nemo_sdg.console import Console
    from nemo_sdg.session import rank

    console = Console(speaks=rank() == 0)
    if recipe is None:
        showing.recipes(console)
    else:
        showing.settings(console, recipe, words or [], diff)


@app.command()
def report(folder: Path = typer.Argument(metavar="RUN", help="Folder of a run.")) -> None:
    """Before and after, rows and reasons; also writes RUN/report.html."""
    from nemo_sdg.console import Console
    from nemo_sdg.evaluation import report as reporting
    from nemo_sdg.evaluation.report import page
    from nemo_sdg.session import rank

    console = Console(speaks=rank() == 0)
    result = reporting.read(folder)
    reporting.show(result, console)
    if rank() == 0:
        console.say(f"the page is {page.write(result)}")


@app.command()
def convert(
    source: str = typer.Argument(metavar="SRC", help="A released, Hugging Face or NeMo 2 folder, or a .nemo file."),
    target: Path = typer.Argument(metavar="DST", help="The folder to make; it must not exist."),
    to: str = typer.Option(..., "--to", metavar="FORMAT", help="release, hf or nemo2."),
    tp: Optional[int] = typer.Option(None, "--tp", min=1, help="Tensor-parallel shards; by default those of SRC."),
    pp: Optional[int] = typer.Option(None, "--pp", min=1, help="Pipeline stages to record; by default those of SRC."),
    tokenizer: Optional[Path] = typer.Option(None, "--tokenizer", metavar="FILE", help="A SentencePiece model."),
    adapter: Optional[str] = typer.Option(None, "--adapter", metavar="DIR", help="Low-rank adapters (PEFT) to merge."),
    threads: Optional[int] = _THREADS,
) -> int:
    """A checkpoint in another format, bit by bit; continues what was interrupted."""
    from nemo_sdg import folder_verbs

    return folder_verbs.convert(source, target, to, tp=tp, pp=pp, tokenizer=tokenizer, adapter=adapter, threads=threads)


@app.command()
def verify(
    source: str = typer.Argument(metavar="DIR", help="A checkpoint in any format, or a run."),
    row: Optional[str] = typer.Option(None, "--row", metavar="ID", help="Trace this row of a run's datasets instead."),
    threads: Optional[int] = _THREADS,
) -> int:
    """What a checkpoint or a run is, and whether each byte is as it should be; exits with 1 if not."""
    if row is not None:
        from nemo_sdg import tracing

        return tracing.verify_row(Path(source), row)
    from nemo_sdg import folder_verbs

    return folder_verbs.verify(source, threads=threads)


def main(arguments: list[str] | None = None) -> int:
    """Runs one verb and returns its exit status."""
    try:
        status = app(args=arguments, prog_name="nemo-sdg", standalone_mode=False)
        if status == _INTERRUPTED:  # what newer typers make of a KeyboardInterrupt
            return _interrupted()
        return status if isinstance(status, int) else 0
    except UserError as error:
        _say(str(error))
        return error.exit_status
    except OSError as error:
        if error.filename is None or error.errno not in _ENVIRONMENT:
            return _defect(error)
        _say(f"{error.filename}: cannot be used, found {error.strerror}; check its rights and its disk")
        return 2
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer: a word that it cannot place
            _say(f"{error.format_message()} `nemo-sdg --help` lists what there is.")
            return 2
        if type(error).__name__ == "Abort":  # and older ones
            return _interrupted()
        return _defect(error)


_ENVIRONMENT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOTDIR)
_ENVIRONMENT += (errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""What files and disks refuse, whoever asks."""


def _defect(error: Exception) -> int:
    _say(f"{type(error).__name__}: a defect of ours; the traceback is in {_keep_traceback()}")
    return 1


def _interrupted() -> int:
    _say("interrupted; the same command continues")
    return _INTERRUPTED


def _say(sentence: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print("nemo-sdg: " + " ".join(sentence.split()), file=sys.stderr)


def _keep_traceback() -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="nemo-sdg-", suffix=".log", delete=False) as file:
            file.write(traceback.format_exc())
        return file.name
    except OSError:  # no room for it anywhere
        traceback.print_exc()
        return "the lines above"


def _run_folder(recipe: str, out: Path | None) -> Path:
    return Path(Path(recipe).stem) if out is None else out
