"""What a run began with: the files of its settings, also those that are named by weights."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from nemo_sdg import plan
from nemo_sdg.config import Data, Generate, RunConfig, Select, Synthesis
from nemo_sdg.errors import ConfigError, StoreError, UserError
from nemo_sdg.store import Run, commit_rows


def config(tmp_path: Path, **data: object) -> RunConfig:
    prompts = tmp_path / "prompts.jsonl"
    commit_rows(prompts, [{"prompt": "x"}])
    return RunConfig(data=Data(**{"prompts": str(prompts), **data}))


@pytest.mark.parametrize("key", ["sft", "labelled", "preference"])
def test_a_file_with_a_weight_must_stay_what_it_was(tmp_path: Path, key: str):
    file = tmp_path / "mine.jsonl"
    commit_rows(file, [{"prompt": "x"}])
    settings = config(tmp_path, **{key: {str(file): 2.0}})
    Run.open(tmp_path / "run", settings, writer=True).close()
    commit_rows(file, [{"prompt": "y"}])
    with pytest.raises(StoreError, match=f"data.{key}.{file} is not what this run began with"):
        Run.open(tmp_path / "run", settings, writer=True)


def test_a_glob_must_stay_what_it_was(tmp_path: Path):
    for name in "ab":
        commit_rows(tmp_path / f"{name}.rows.jsonl", [{"prompt": name}])
    settings = config(tmp_path, prompts=f"{tmp_path}/*.rows.jsonl")
    Run.open(tmp_path / "run", settings, writer=True).close()
    Run.open(tmp_path / "run", settings, writer=True).close()
    commit_rows(tmp_path / "b.rows.jsonl", [{"prompt": "c"}])
    with pytest.raises(StoreError, match="data.prompts is not what this run began with"):
        Run.open(tmp_path / "run", settings, writer=True)


def test_the_plan_counts_all_files_and_misses_those_that_are_not_there(tmp_path: Path):
    commit_rows(tmp_path / "in/a.jsonl", [{"prompt": str(i)} for i in range(3)])
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x", "y"]}), tmp_path / "in/b.parquet")
    assert plan.make(config(tmp_path, prompts=str(tmp_path / "in"))).prompts == 5
    with pytest.raises(ConfigError, match="data.labelled: there is no such file"):
        plan.make(config(tmp_path, labelled={str(tmp_path / "absent.jsonl"): 1.0}))
    for key in ("decontaminate", "likeness"):  # read long after, when everything is generated
        asked = config(tmp_path)
        setattr(asked.select, key, ["absent.jsonl"] if key == "decontaminate" else "absent.jsonl")
        with pytest.raises(ConfigError, match=f"select.{key}: there is no such file, found absent.jsonl"):
            plan.make(asked)
    with pytest.raises(UserError, match="no file of rows"):
        plan.make(config(tmp_path, preference={f"{tmp_path}/*.absent": 1.0}))
    (tmp_path / "in/b.parquet").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="cannot read the file"):
        plan.make(config(tmp_path, prompts=str(tmp_path / "in")))


def unlike(file: Path) -> None:
    """Another content of the same length."""
    text = file.read_text()
    file.write_text(text[:-2] + ("x" if text[-2] != "x" else "y") + text[-1])


NAMED = ("brief.yaml", "seeds.jsonl", "documents/a.txt", "templates/a.yaml", "evaluation.jsonl", "own.jsonl", "other/a")


@pytest.mark.parametrize("name", NAMED)
def test_files_of_a_brief_of_selection_and_of_other_generators_must_stay_what_they_were(tmp_path: Path, name: str):
    for folder in ("documents", "templates", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "brief.yaml").write_text("seeds: seeds.jsonl\ndocuments: documents\n# one\n")
    for file in NAMED[1:]:
        (tmp_path / file).write_text('{"prompt": "one"}\n')
    brief = Synthesis(brief=f"{tmp_path}/brief.yaml", kinds={"open_qa": 1}, templates=f"{tmp_path}/templates")
    settings = config(tmp_path, synthesis=brief)
    settings.select = Select(decontaminate=[f"{tmp_path}/evaluation.jsonl"], likeness=f"{tmp_path}/own.jsonl")
    settings.generate = Generate(others={f"{tmp_path}/other": 1, "http://127.0.0.1:1/v1": 2})
    for _ in range(2):
        Run.open(tmp_path / "run", settings, writer=True).close()
    if name == "other/a":  # a model: names and sizes of its files
        (tmp_path / name).write_text("longer than before, by far")
    else:
        unlike(tmp_path / name)
    with pytest.raises(StoreError, match="is not what this run began with") as caught:
        Run.open(tmp_path / "run", settings, writer=True)
    assert str(tmp_path / name.split("/")[0]) in str(caught.value)
    assert "http" not in (tmp_path / "run/run.yaml").read_text().split("config:")[0]
