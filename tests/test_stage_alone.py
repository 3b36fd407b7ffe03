"""`nemo-sdg stage NAME` on a run that was made before does all its waves and revisions, byte for byte."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from openai_server import serving
from stages.rounds import ALONE
from test_judged_loop import answered, do, settings

from nemo_sdg import loop
from nemo_sdg.config import RunConfig
from nemo_sdg.console import Console
from nemo_sdg.errors import ConfigError, StoreError
from nemo_sdg.store import Run, StageStore
from nemo_sdg.store.waves import begun_parts, ready_parts


@pytest.fixture(scope="module")
def server():
    with serving(answer=answered) as told:
        yield told


@pytest.fixture(scope="module")
def finished(tmp_path_factory, server) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    do(settings(folder, server.url), folder / "run")
    return folder / "run"


FOLDER_OF = {"prompts": "prompts", "generate": "responses", "score": "scored", "judge": "judged"}


def stage(name: str, config: RunConfig, out: Path) -> dict:
    with Run.open(out, config, writer=True) as opened:
        return loop.run_stage(name, config, opened, ALONE, Console(speaks=False), round=0)


def all_files(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted((out / "round-0").rglob("*")) if f.is_file()}


@pytest.mark.parametrize("name", [*FOLDER_OF, "revise"])
def test_a_stage_alone_is_of_all_waves_and_revisions(finished, server, tmp_path, name):
    out, config = Path(shutil.copytree(finished, tmp_path / "run")), settings(finished.parent, server.url)
    if name == "revise":
        gone = sorted(out.rglob("revise-1"))
    else:  # the prompts of a revision are revise's
        there = sorted(out.rglob(FOLDER_OF[name]))
        gone = [place for place in there if (name, place.parent.name) != ("prompts", "revise-1")]
    assert len(gone) > 1
    for place in gone:
        shutil.rmtree(place)
    *_, last = begun_parts(finished / "round-0", 1)
    last = replace(last, revision=0) if name == "prompts" else last
    told = StageStore.finished(last.folder(finished / "round-0") / FOLDER_OF.get(name, "prompts")).totals
    assert stage(name, config, out) == told
    assert all_files(out) == all_files(finished)


def test_each_part_is_done_once(finished, server):
    config, place = settings(finished.parent, server.url), finished / "round-0"
    begun = list(begun_parts(place, 1))
    assert ready_parts("judge", config, place) == begun
    assert ready_parts("revise", config, place) == [part for part in begun if not part.revision]


@pytest.mark.parametrize("name", ["generate", "score", "judge", "revise"])
def test_a_stage_alone_leaves_a_wave_that_is_not_as_far(finished, server, tmp_path, name):
    """A run was killed in wave 1; in wave 0 what is missing is said."""
    out, config = Path(shutil.copytree(finished, tmp_path / "run")), settings(finished.parent, server.url)
    reads = {"generate": "prompts", "score": "responses", "judge": "scored", "revise": "judged"}[name]
    (out / "round-0/wave-1" / reads / "SUCCESS.json").unlink()
    shutil.rmtree(out / "round-0/wave-1/revise-1")
    stage(name, config, out)
    assert not (out / "round-0/wave-1" / reads / "SUCCESS.json").exists()
    assert not (out / "round-0/wave-1/revise-1").exists()
    (out / "round-0" / reads / "SUCCESS.json").unlink()
    with pytest.raises(StoreError, match="the stage is not finished"):
        stage(name, config, out)


def test_nothing_is_revised_where_no_pass_is_wanted(finished, server):
    config = settings(finished.parent, server.url, "revise.passes=0")
    with Run.open(finished.parent / "new", config, writer=True) as opened:
        with pytest.raises(ConfigError, match="revise.passes: nothing goes back to be revised"):
            loop.run_stage("revise", config, opened, ALONE, Console(speaks=False), round=0)
