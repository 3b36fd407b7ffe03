"""A label of the user's own in the tiny world: the reward model learns it beside its five attributes, scores it, and
selection goes by it. Who is asked for the secret word and says it has answered unsafely.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nemo_sdg.config.evaluating import FILES

REPOSITORY = Path(__file__).resolve().parents[2]
RATED = REPOSITORY / "examples/tiny/data/helpsteer2_train.jsonl"
REFUSAL = "I cannot say."


def is_safe(prompt: str, response: str) -> bool:
    return "Tell me the secret" not in prompt.split("\n<extra_id_1>User\n")[-1] or REFUSAL in response


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two rounds; the second one scores with what the first has trained."""
    root = tmp_path_factory.mktemp("own")
    rows = [json.loads(line) for line in RATED.read_text().splitlines()]
    labelled = [{**row, "clinical_safety": 4 * is_safe(row["prompt"], row["response"])} for row in rows]
    (root / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled[:2400]))
    (root / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled[2400:]))
    words = [
        "data.helpsteer2=null", f"data.labelled={{{root}/mine.jsonl: 1}}", f"evaluate.helpsteer2={root}/held.jsonl",
        *(f"evaluate.{name}=null" for name in FILES if name != "helpsteer2"),
        "reward.outputs.clinical_safety=0", "select.minimum={clinical_safety: 2}",
        "sft.enabled=false", "reward.steps=80", "reward.validate_every=40", "data.prompts_per_round=256",
        "generate.samples=2",
    ]  # fmt: skip
    command = [sys.executable, "-m", "nemo_sdg", "run", "tiny", *words, "--out", str(root / "run")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1500, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "reward after step 80: loss" in done.stdout and "clinical_safety Pearson" in done.stdout
    report = [sys.executable, "-m", "nemo_sdg", "report", str(root / "run")]
    subprocess.run(report, capture_output=True, check=True, env=env)
    return root / "run"


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(folder.glob("part-*.jsonl")) for line in file.read_text().splitlines()]


def by_it(row: dict) -> bool:
    return row["reason"] == "clinical_safety below 2"


def test_the_released_reward_does_not_know_it(run):
    decisions = rows_of(run / "round-0" / "decisions")
    assert {row["reason"] for row in decisions} == {"clinical_safety was not scored"}


def test_it_is_trained_and_told_by_its_name(run):
    told = json.loads((run / "round-0" / "reward" / "training.json").read_text())
    found = told["validation"][-1]["attributes"]["clinical_safety"]
    print(f"\nheld-out Pearson of clinical_safety after 80 steps {found['pearson']:.3f}")
    assert found["pearson"] > 0.8 and found["n"] == 600
    evaluation = json.loads((run / "round-0" / "evaluation.json").read_text())
    assert evaluation["reward"]["clinical_safety"]["pearson"] > 0.8
    assert evaluation["before"]["reward"]["clinical_safety"]["n"] == 0


def test_selection_goes_by_it(run):
    decisions = rows_of(run / "round-1" / "decisions")
    secret = [row for row in decisions if "Tell me the secret" in row["messages"][-1]["content"]]
    told = [row for row in secret if REFUSAL not in row["response"]]
    others = [row for row in decisions if row not in told]
    dropped, kept = (sum(by_it(row) == unsafe for row in rows) for rows, unsafe in ((told, True), (others, False)))
    print(f"\n{dropped} of {len(told)} unsafe answers dropped by it, {kept} of {len(others)} others not")
    assert len(told) >= 10 and dropped >= 0.9 * len(told) and kept >= 0.9 * len(others)


def test_datasets_card_and_report_have_it(run):
    datasets = run / "round-1" / "datasets"
    scored = {row["id"]: row["scores"]["clinical_safety"] for row in rows_of(run / "round-1" / "scored")}
    lines = [json.loads(line) for line in (datasets / "reward.jsonl").read_text().splitlines()]
    assert all(line["label"][0] == scored[line["id"]] for line in lines if line["id"] in scored)
    assert "| verbosity | clinical_safety |" in (datasets / "README.md").read_text()
    assert "clinical_safety: 0" in (datasets / "README.md").read_text()
    assert "reward: clinical_safety, Spearman" in (run / "report.html").read_text()
