"""The report reads a run's folder alone, and its page is whole, escaped and needs nothing beside it."""

from __future__ import annotations

import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nemo_sdg.config import ATTRIBUTES, Data, Models, Preference, Run, RunConfig, to_yaml
from nemo_sdg.console import Console
from nemo_sdg.errors import StoreError
from nemo_sdg.evaluation import page, report
from nemo_sdg.evaluation.curve import svg
from nemo_sdg.store import Run as Folder

HOSTILE = "<script>alert(1)</script>&\"'"


def agreement(spearman: float | None) -> dict:
    return {name: {"pearson": 0.5, "spearman": spearman, "mae": 0.4, "n": 30} for name in ATTRIBUTES}


def settings(name: str, rounds: int) -> RunConfig:
    nowhere = Models(base="base", instruct="instruct", reward="reward")
    return RunConfig(models=nowhere, data=Data(prompts="prompts.jsonl"), run=Run(name=name, rounds=rounds))


@pytest.fixture
def finished(tmp_path) -> Path:
    Folder.open(tmp_path, settings(HOSTILE, 2), writer=True).close()
    before = {"policy": {"exact_match": 0.5, "n": 200, "faulty": 0}, "reward": agreement(0.9)}
    for number, share in enumerate((0.55, 0.65)):
        place = tmp_path / f"round-{number}"
        totals = {"rows_in": 40, "kept": 25, "dropped": {f"below {HOSTILE}": 12}, "faulty": 3}
        for name in ("responses", "decisions"):
            (place / name).mkdir(parents=True)
            (place / name / "SUCCESS.json").write_text(json.dumps({"totals": totals}))
        reasons = ["broken JSON: no comma at character 3", "broken JSON: no end at character 9", "no text, found None"]
        rows = [{"file": "p.jsonl", "line": i, "reason": reason} for i, reason in enumerate(reasons)]
        (place / "responses" / "faulty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        after = {"policy": {"exact_match": share, "n": 200, "faulty": 0}, "reward": agreement(0.88), "before": before}
        (place / "evaluation.json").write_text(json.dumps(after))
        (place / "policy").mkdir()
        (place / "policy" / "training.json").write_text(
            json.dumps({"losses": [3.0, 2.0, 1.5], "rows": 20, "rows_set_aside": {"too long": 5}})
        )
        counted = {"sft": {"rows_in": 25, "kept": 24, "dropped": {"held out": 1}, "faulty": 0}}
        (place / "datasets").mkdir()
        (place / "datasets" / "summary.json").write_text(json.dumps({"totals": counted}))
    return tmp_path


def test_steps_towards_the_policy(finished):
    """Each fit has its losses, and what SFT alone has made stands beside the tuned policy."""
    config = settings("tuned", 1)
    config.preference = Preference(enabled=True, iterations=2)
    (finished / "run.yaml").write_text(to_yaml(config))
    place = finished / "round-0"
    for name, first in (("sft", 4.0), ("preference-1", 0.7)):
        (place / name).mkdir()
        told = {"losses": [first, first / 2], "rows": 9, "rows_set_aside": {}}
        (place / name / "training.json").write_text(json.dumps(told))
    evaluated = json.loads((place / "evaluation.json").read_text())
    sft = {"exact_match": 0.52, "n": 200, "faulty": 0}
    (place / "evaluation.json").write_text(json.dumps({**evaluated, "sft": sft}))
    result = report.read(finished)
    assert list(result.losses) == [(0, "sft"), (0, "preference-1"), (0, "policy")]
    told = dict(report.measures(result))
    assert told["policy: exact match, 200 prompts"] == [0.5, 0.55] and told["after SFT alone: exact match"] == [None, 0.52]
    text = page.write(result).read_text()
    for label in ("SFT loss of the policy", "RPO loss of the policy, iteration 1", "RPO loss of the policy, iteration 2"):
        assert text.count(f"<p>{label}</p>") == 1
    shown = [stage.stage for stage in result.rows if stage.stage.startswith("train")]
    assert shown == ["train sft", "train preference-1", "train policy"]


def test_summary(finished):
    stream = io.StringIO()
    report.show(report.read(finished), Console(stream))
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "measure before round 0 round 1 gain" in lines
    assert "policy: exact match, 200 prompts 0.500 0.550 0.650 +0.150" in lines
    assert "reward: helpfulness, Spearman 0.900 0.880 0.880 -0.020" in lines
    assert f"0 generate 40 25 12 3 below {HOSTILE} 12, broken JSON 2, no text 1" in lines
    # These totals count three faulty rows, and the folder of this stage keeps none of them.
    assert f"1 select 40 25 12 3 below {HOSTILE} 12, no reason kept 3" in lines
    assert "0 assemble sft 25 24 1 0 held out 1" in lines and "1 train policy 25 20 0 5 too long 5" in lines
    assert f"policy {finished}/round-1/policy" in lines


def test_an_unfinished_run(tmp_path):
    Folder.open(tmp_path, settings("x", 3), writer=True).close()
    result = report.read(tmp_path)
    stream = io.StringIO()
    report.show(result, Console(stream))
    assert not result.finished and "x: 0 of 3 rounds finished" in stream.getvalue()
    assert "<h1>x</h1>" in page.html(result)


def test_no_run_and_a_torn_file(tmp_path, finished):
    with pytest.raises(StoreError, match="the folder is no run"):
        report.read(tmp_path / "nothing")
    (finished / "round-0" / "evaluation.json").write_text('{"policy"')
    with pytest.raises(StoreError, match="the file cannot be read"):
        report.read(finished)


class Strict(HTMLParser):
    """Every tag is closed in order, and nothing is loaded from elsewhere or run."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "href", "onload"} & {name for name, _ in attributes}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_escaped(finished):
    path = page.write(report.read(finished))
    assert path == finished / "report.html"
    text = path.read_text()
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
    shown = Strict(text).text
    assert f"below {HOSTILE} 12" in shown and "0.650" in shown and "+0.150" in shown
    assert text.count("<polyline") == 2  # one line per round
    assert "round-1/policy" in shown and str(finished) not in shown  # the folder can be moved


def test_curve_known_answer():
    text = svg({"a": [1.0, 3.0, 2.0]}, "loss")
    assert 'points="48.0,192.0 300.0,12.0 552.0,102.0"' in text
    assert ">1<" in text and ">2<" in text and ">3<" in text


def test_curves_without_spread_or_with_values_that_are_not_finite():
    assert svg({"a": []}, "loss") == "" and svg({"a": [math.nan]}, "loss") == ""
    assert "nan" not in svg({"a": [1.0, math.nan, 1.0]}, "loss")
    assert "<polyline" in svg({"a": [2.0]}, "loss")
