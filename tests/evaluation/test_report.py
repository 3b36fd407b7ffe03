"""The report reads a run's folder alone, and its page is whole, escaped and needs nothing beside it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation.pages import fill, run_of, scored
from rounds import ALONE

from nemo_sdg import cli, loop
from nemo_sdg.config import ATTRIBUTES, Data, Models, Preference, Run, RunConfig, from_yaml, to_yaml
from nemo_sdg.console import Console
from nemo_sdg.errors import Stopped, StoreError
from nemo_sdg.evaluation import report
from nemo_sdg.evaluation.ablation import ARMS
from nemo_sdg.evaluation.report import examples, html, page, sections, whatif
from nemo_sdg.evaluation.report.rows import read_rows
from nemo_sdg.evaluation.report.times import read_times, union
from nemo_sdg.store import Run as Folder
from nemo_sdg.store.seals import check_text

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


def told(result: report.Result) -> list[str]:
    stream = io.StringIO()
    report.show(result, Console(stream))
    return [" ".join(line.split()) for line in stream.getvalue().splitlines()]


def test_steps_towards_the_policy(finished):
    """Each fit has its losses, and what SFT alone has made stands beside the tuned policy."""
    config = settings("tuned", 1)
    config.preference = Preference(enabled=True, iterations=2)
    (finished / "run.yaml").write_text(to_yaml(config))
    place = finished / "round-0"
    for name, first in (("sft", 4.0), ("preference-1", 0.7)):
        (place / name).mkdir()
        losses = {"losses": [first, first / 2], "rows": 9, "rows_set_aside": {}}
        (place / name / "training.json").write_text(json.dumps(losses))
    evaluated = json.loads((place / "evaluation.json").read_text())
    sft = {"exact_match": 0.52, "n": 200, "faulty": 0}
    (place / "evaluation.json").write_text(json.dumps({**evaluated, "sft": sft}))
    result = report.read(finished)
    assert list(result.losses) == [(0, "sft"), (0, "preference-1"), (0, "policy")]
    values = {measure.name: measure.values for measure in report.measures(result)}
    assert values["policy: exact match, 200 prompts"] == [0.5, 0.55] and values["after SFT alone: exact match"] == [
        None,
        0.52,
    ]
    text = page.write(result).read_text()
    for label in (
        "SFT loss of the policy",
        "RPO loss of the policy, iteration 1",
        "RPO loss of the policy, iteration 2",
    ):
        assert text.count(f"<figcaption>{label}</figcaption>") == 1
    shown = [stage.stage for stage in result.rows if stage.stage.startswith("train")]
    assert shown == ["train sft", "train preference-1", "train policy"]


def test_summary(finished):
    lines = told(report.read(finished))
    assert "measure before round 0 round 1 gain" in lines
    assert "policy: exact match, 200 prompts 0.500 0.550 0.650 +0.150" in lines
    assert "reward: helpfulness, Spearman 0.900 0.880 0.880 -0.020" in lines
    assert f"0 generate 40 25 12 3 below {HOSTILE} 12, broken JSON 2, no text 1" in lines
    # These totals count three faulty rows, and the folder of this stage keeps none of them.
    assert f"1 select 40 25 12 3 below {HOSTILE} 12, no reason kept 3" in lines
    assert "0 assemble sft 25 24 1 0 held out 1" in lines and "1 train policy 25 20 0 5 too long 5" in lines
    assert f"policy {finished}/round-1/policy" in lines


def test_everything_that_an_evaluation_may_say(finished):
    """With intervals, in the terminal and on the page; what a state does not say is a dash."""
    file = finished / "round-1" / "evaluation.json"
    state = json.loads(file.read_text())
    state["policy"] |= {"low": 0.58, "high": 0.71}
    state["instructions"] = {
        "prompt_strict": 0.5,
        "instruction_strict": 0.6,
        "prompt_loose": 0.7,
        "instruction_loose": 0.8,
    }
    state["reward"]["helpfulness"]["calibrated_mae"] = 0.321
    bench = {"Chat": 0.9, "Chat Hard": 0.5, "Safety": 0.6, "Reasoning": 0.7, "Overall": 0.675}
    subsets = {"hep-cpp": {"accuracy": 0.7251, "n": 164}}
    state["rewardbench"] = {**bench, "subsets": subsets, "length_only": {**bench, "Overall": 0.4141}}
    state["drift"] = {"helpfulness": {"shift": 0.111, "ks": 0.222, "outside": 0.03, "drifted": True}}
    controlled = {"win_rate": 0.55, "low": 0.51, "high": 0.59}
    state["win_rate"] = {
        "wins": 61,
        "ties": 3,
        "losses": 36,
        "n": 100,
        "win_rate": 0.625,
        "low": 0.53,
        "high": 0.71,
        "controlled": controlled,
    }
    state["gate"] = {"policy": {"accepted": False, "why": f"{HOSTILE} no better"}}
    arm = {"mean": 0.5, "low": 0.4, "high": 0.6}
    ablation = {
        "seeds": 3, "rows": {"selected": 40, "random": 40, "unfiltered": 1234},
        "arms": dict.fromkeys(("selected", "random", "unfiltered"), arm),
        "differences": {"random": {"mean": 0.0625, "low": 0.01, "high": 0.12}, "unfiltered": {**arm, "low": None}},
    }  # fmt: skip
    (finished / "round-0" / "ablation.json").write_text(json.dumps(ablation))
    file.write_text(json.dumps(state))
    result = report.read(finished)
    lines = told(result)
    assert "policy: exact match, 200 prompts 0.500 0.550 0.650 (0.580 to 0.710) +0.050" in lines  # round 1 was refused
    assert "policy: instructions followed, prompts, strict - - 0.500 -" in lines
    assert "policy: wins against the start - - 0.625 (0.530 to 0.710) -" in lines
    assert "policy: wins, of equal length - - 0.550 (0.510 to 0.590) -" in lines
    assert "RewardBench: Chat Hard - - 0.500 -" in lines and "RewardBench: Overall - - 0.675 -" in lines
    assert f"gate of the policy of round 1: {HOSTILE} no better" in lines
    assert "unfiltered 1,234 0.500 (0.400 to 0.600)" in lines
    assert "selected - random +0.062 (+0.010 to +0.120)" in lines and "selected - unfiltered +0.500" in lines
    assert not any(what == "policy" and "round-1" in path for what, path in report.places(result))
    text = Strict(page.page(result)).text
    for said in (
        "0.321",
        "1,234",
        "+0.062 (+0.010 to +0.120)",
        "0.725",
        "0.414",
        "0.222",
        "drifted",
        "the old one stays",
        f"{HOSTILE} no better",
        "0.625 (0.530 to 0.710)",
    ):
        assert said in text, said


def test_the_gain_is_that_of_the_model_that_stands(finished):
    """The gate is asked for each kind: a refused policy says nothing of the reward model beside it."""

    def gate(number: int, **accepted: bool) -> None:
        file = finished / f"round-{number}" / "evaluation.json"
        verdicts = {kind: {"accepted": said, "why": "so"} for kind, said in accepted.items()}
        file.write_text(json.dumps({**json.loads(file.read_text()), "gate": verdicts}))

    def gains() -> tuple[dict[str, str], str]:
        result = report.read(finished)
        return {measure.name: measure.gained() for measure in report.measures(result)}, sections.summary(result, None)

    policy, reward = "policy: exact match, 200 prompts", "reward: helpfulness, Spearman"
    gate(1, policy=False, reward=True)
    told, cards = gains()
    assert (told[policy], told[reward]) == ("+0.050", "-0.020") and "0.500 before, 0.550 now" in cards
    gate(0, policy=False, reward=True)
    gate(1, policy=True, reward=False)
    told, cards = gains()
    assert (told[policy], told[reward]) == ("+0.150", "-0.020") and "0.500 before, 0.650 now" in cards
    gate(1, policy=False)
    told, cards = gains()
    assert (told[policy], told[reward]) == ("refused", "-0.020")
    assert ">refused<" in cards and "0.500 before; the gate let no new model go on" in cards


def test_a_run_is_not_finished_before_its_ablation_is(finished):
    config = settings("x", 2)
    config.evaluate.ablation, config.evaluate.exact_match = True, "prompts.jsonl"
    (finished / "run.yaml").write_text(to_yaml(config))
    result = report.read(finished)
    assert not result.finished
    assert told(result)[0].startswith("x: 2 of 2 rounds finished, without the ablation, fingerprint")
    assert "not finished: 2 of 2 rounds, without the ablation" in sections.state(result, [], None)
    (finished / "round-0" / "ablation.json").write_text(json.dumps({"seeds": 3}))
    assert report.read(finished).finished


def test_an_unfinished_run(tmp_path):
    Folder.open(tmp_path, settings("x", 3), writer=True).close()
    result = report.read(tmp_path)
    assert not result.finished and "x: 0 of 3 rounds finished, fingerprint " + result.fingerprint in told(result)
    assert "<h1>x</h1>" in page.page(result) and "<script" not in page.page(result)


def test_while_it_goes_on(tmp_path, capsys):
    """Responses are scored and not decided on: what is there is shown, what is half there is left out and said."""
    Folder.open(tmp_path, settings("going", 2), writer=True).close()
    place = tmp_path / "round-0"
    rows = [scored(f"p{i}", helpfulness=i / 40) for i in range(160)]
    fill(place / "scored", rows, finished=False)
    (place / "decisions").mkdir()
    (place / "decisions" / "stage.json").write_text("{}")
    (place / "evaluation.json.tmp").write_text("{")
    torn = sorted((place / "scored").glob("part-*"))[1]
    torn.write_bytes(torn.read_bytes()[:-20])
    (tmp_path / "logs").mkdir(exist_ok=True)
    event = {
        "time": 100.0,
        "event": "stage",
        "stage": "generate",
        "round": 0,
        "totals": {"kept": 160, "tokens": 320},
        "seconds": 4.0,
    }
    (tmp_path / "logs" / "events.jsonl").write_text(json.dumps(event) + '\n{"time": 1')
    assert cli.main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "96 scored rows so far" in text and "1 parts of rows could not be read" in text
    assert "the last stage that ended is generate of round 0" in text and "80 tokens/s, 40 rows/s" in text
    assert "What if" not in text and "<script" not in text
    check_text(tmp_path / "report.html", "", "<!-- {} -->")


def test_no_run_and_a_torn_file(tmp_path, finished):
    with pytest.raises(StoreError, match="the folder is no run"):
        report.read(tmp_path / "nothing")
    (finished / "round-0" / "evaluation.json").write_text('{"policy"')
    with pytest.raises(StoreError, match="the file cannot be read"):
        report.read(finished)


class Strict(HTMLParser):
    """Every tag is closed in order, and nothing is loaded from elsewhere; scripts are the data and the program."""

    VOID = ("meta", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.scripts = "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        assert tag not in ("link", "img", "iframe", "object", "base", "form")
        named = dict(attributes)
        assert not any(
            name.startswith("on") or name in ("src", "action", "data", "style") and tag not in SVG for name in named
        ), attributes
        assert named.get("href", "#").startswith("#") and named.get("xlink:href", "#").startswith("#")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


SVG = ("path", "rect", "text", "use", "svg", "g", "line")


def test_the_page_is_whole_and_escaped(finished):
    path = page.write(report.read(finished))
    assert path == finished / "report.html"
    text = path.read_text()
    assert "http" not in text.replace("http-equiv", "")
    parsed = Strict(text)
    shown = parsed.text
    assert parsed.scripts == [] and "script-src 'none'" in text
    assert f"below {HOSTILE} 12" in shown and "0.650" in shown and "+0.150" in shown
    assert "round-1/policy" in shown and str(finished) not in shown  # the folder can be moved


def test_rows_in_the_page_are_text_in_markup_and_in_the_script(tmp_path):
    """The text that would end a script, line separators that were ends of lines to scripts, what no file can hold."""
    texts = [f"</script>{HOSTILE}", "a\u2028b\u2029c", "d\x00e\x1b", "half \ud800 of a pair", "<!--<script>"]
    rows = [scored(f"p{i}", 0, said, asked=f"{HOSTILE} {i}", helpfulness=i / 1.2) for i, said in enumerate(texts)]
    result = run_of(tmp_path, rows[:3] + rows[4:], f"run.name={HOSTILE}")
    text = page.write(result).read_text(encoding="utf-8")
    parsed = Strict(text)
    data, program = parsed.scripts
    assert not set("<>&\u2028\u2029") & set(data) and "<" in program
    carried = json.loads(data)["rounds"][0]["texts"]
    assert {said for _, said in carried.values()} == {texts[0], texts[1], texts[2], texts[4]}
    assert HOSTILE in parsed.text and "</script>" + HOSTILE in parsed.text
    assert text.count("<script") == 2 and text.count("</script") == 2
    assert html.text(texts[3]) == "half \ufffd of a pair" and "\ufffd" in html.data(texts[3])


def test_what_the_page_counts(tmp_path):
    """Known answers: 8 rows of two prompts, of which the best 1 of a prompt at helpfulness 2 or more is kept."""
    rows = [scored(f"p{i // 4}", i % 4, f"text {i}", helpfulness=float(i % 4)) for i in range(8)]
    rows[7] = dataclasses.replace(rows[7], finish_reason="length")
    result = run_of(tmp_path, rows, "select.minimum={helpfulness: 2.0}", "select.per_prompt=1")
    (found,) = page.rows_of(result)
    assert found.kept.tolist() == [False, False, False, True, False, False, True, False]
    assert list(found.scores["helpfulness"]) == [0, 1, 2, 3] * 2 and list(found.flags) == [0, 0, 0, 4, 0, 0, 4, 1]
    text = Strict(page.page(result)).text
    assert "Round 0: 8 scored rows, 2 kept" in text and "mean 1.50 → 2.50" in text
    assert "helpfulness below 2 4, cut off by length 1, not among the best 1 of its prompt 1" in text
    assert "accepted rowsof 8 scored rows, 25.0 %" in text


def test_what_only_the_selection_can_see_stays_as_it_was_decided(tmp_path):
    rows = [scored("p", i, f"the same long answer to a question about the weather {i}") for i in range(3)]
    rows.append(scored("q", 0, "write to jane@example.com"))
    rows.append(scored("q", 1, "a different thing, and short", helpfulness=0.0))
    result = run_of(tmp_path, rows, "select.near_duplicates=0.6", "select.pii=drop")
    (found,) = page.rows_of(result)
    assert list(found.flags) == [4, 8, 8, 2, 0]  # kept; two near duplicates; an address is settled, a limit is not
    text = Strict(page.page(result)).text
    assert "What select.near_duplicates, select.pii dropped stays dropped here" in text


def test_a_sample_is_of_whole_prompts_and_never_more_than_asked(tmp_path):
    rows = [scored(f"p{i // 4}", i % 4, f"text {i}") for i in range(400)]
    result = run_of(tmp_path, rows)
    for most in (30, 60, 100, 150, 200, 300):
        (found,) = page.rows_of(result, most)
        prompts = {name.split("#")[0] for name in found.ids.values()}
        assert most / 4 < len(found.ids) <= most and len(found.ids) == 4 * len(prompts) and len(found) == 400
    told = whatif.of_run([found], result.config)["rounds"][0]
    assert told["of"] == 400 and len(told["ids"]) == len(found.ids)
    (all_of_them,) = page.rows_of(result, 400)
    assert len(all_of_them.ids) == 400


def test_texts_in_the_page_are_those_nearest_to_a_limit(tmp_path):
    rows = [scored(f"p{i}", 0, f"text {i:03}", helpfulness=3 + i / 100) for i in range(100)]
    result = run_of(tmp_path, rows)
    (found,) = page.rows_of(result)
    told = whatif.of_round(found, result.config.select, versions=False, text_bytes=12 * 20)
    assert 15 < len(told["texts"]) <= 30 and max(told["texts"]) == len(told["texts"]) - 1


def test_examples_are_the_best_the_median_and_the_worst(tmp_path):
    rows = [scored(f"p{i}", 0, f"text {i}", helpfulness=i / 10, correctness=3.0) for i in range(21)]
    rows += [scored("p20", 1, "text 20", helpfulness=2.0, correctness=3.0)]  # the best text a second time
    (found,) = page.rows_of(run_of(tmp_path, rows, "select.minimum={}"))
    ranked = examples.ranked(found)
    assert ranked["best"] in ([20, 19, 18], [21, 19, 18])
    assert ranked["median"] == [10, 11, 9] and ranked["worst"] == [0, 1, 2]


def test_what_revision_changed(tmp_path):
    first = [scored(f"p{i}", 0, "the sky is gren", asked="what is blue?", helpfulness=2.0) for i in range(2)]
    of = {"revision": 1, "root": "p0#0", "revises": "p0#0"}
    better = dataclasses.replace(scored("p0", 0, "the sky is blue <b>", helpfulness=4.0), id="p0#0/r1#0", provenance=of)
    result = run_of(tmp_path, [*first, better], "revise.passes=1", "select.minimum={helpfulness: 3.0}")
    (found,) = page.rows_of(result)
    assert examples.revised(found) == [(2, 0)]
    text = page.page(result)
    assert "the sky is <del>gren</del><ins>blue &lt;b&gt;</ins>" in text and "2.00 → 4.00" in text
    assert "This run has answers revised" in text


def test_the_guide_names_the_sections_as_they_are(tmp_path):
    """And its figures are written as the page writes them."""
    guide = (Path(__file__).parents[2] / "examples" / "reading_the_report.md").read_text(encoding="utf-8")
    result = run_of(tmp_path, [scored(f"p{i}") for i in range(4)])
    sections = re.findall(r'<h2 id="[a-z]+">(.*?)</h2>', page.page(result))
    told = re.findall(r"^## (.*)$", guide, flags=re.MULTILINE)[1:]
    shown_here = [title for title in told if title not in ("Before and after, on held-out rows", "Training", "Time")]
    assert [title for title in sections if title in told] == shown_here and len(shown_here) > 4
    text = "".join((HERE / name).read_text(encoding="utf-8") for name in ("whatif.js", "whatif.html"))
    for figure in (
        "also among as many longest rows",
        "prompts with an accepted row",
        "different texts",
        "different pairs of words",
        "evenness",
    ):
        assert f"*{figure}" in guide and figure in text


HERE = Path(page.__file__).parent


def test_word_diff():
    assert examples.word_diff("a b c", "a b c") == "a b c"
    assert examples.word_diff("a b c", "a x c") == "a <del>b</del><ins>x</ins> c"
    assert examples.word_diff("", "<i>") == "<ins>&lt;i&gt;</ins>" and examples.word_diff("&", "") == "<del>&amp;</del>"


def test_times(tmp_path):
    """Stages that overlap count once; a stage of a second start adds to the first; what lies between is idle."""

    def stage(end: float, name: str, seconds: float | None, **totals) -> dict:
        more = {} if seconds is None else {"seconds": seconds}
        return {"time": end, "event": "stage", "stage": name, "round": 0, "totals": totals, **more}

    (tmp_path / "logs").mkdir()
    events = [
        stage(10.0, "prompts", 10.0, kept=5), stage(30.0, "generate", 20.0, kept=20, tokens=400),
        stage(30.0, "score", 15.0, kept=20), stage(60.0, "select", 10.0, kept=8, rows_in=20),
        {"time": 70.0, "event": "trained", "round": 0, "kind": "policy", "tokens": 1000, "seconds": 9.0},
        # of an ablation, which is no part of the round's training
        {"time": 71.0, "event": "trained", "round": 0, "folder": "round-0/.ablation/random-0/policy", "tokens": 500},
        stage(80.0, "train", 20.0), stage(100.0, "select", 0.0, kept=8, rows_in=20),
    ]  # fmt: skip
    file = tmp_path / "logs" / "events.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in events) + "[]\nnot JSON\n")
    times = read_times(tmp_path)
    assert (times.wall, times.tokens) == (100.0, 400) and times.idle == pytest.approx(0.4)  # 30 to 50, 80 to 100
    assert times.accepted_per_hour() == pytest.approx(8 * 3600 / 40)
    by_name = {one.stage: one for one in times.stages}
    assert by_name["select"].rows == 8 and by_name["train"].tokens == 1000 and by_name["generate"].seconds == 20.0
    file.write_text(
        json.dumps(stage(30.0, "generate", None, kept=1)) + "\n" + json.dumps(stage(40.0, "score", None, kept=1))
    )
    assert read_times(tmp_path).idle is None and read_times(tmp_path).wall == 10.0
    assert union([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4 and read_times(tmp_path / "nothing") is None


def test_events_that_nobody_has_sealed(tmp_path):
    """What has another form than ours is left out, and never markup or a traceback."""
    result = run_of(tmp_path, [scored("p", i) for i in range(4)], "data.sft={a&b.jsonl: 1}")
    plain = {"time": 100.0, "event": "stage", "stage": "generate", "round": 0, "totals": {"kept": 4}, "seconds": 2.0}
    strange = [
        *({**plain, "round": value} for value in (HOSTILE, "0", None, 1.5, [0], True, -1)),
        *({**plain, name: value} for name in ("wave", "revision") for value in ([], HOSTILE)),
        *({**plain, "time": value} for value in (math.nan, math.inf, 1e300, -1.0, True, HOSTILE)),
    ]  # fmt: skip
    odd = [{**plain, "totals": {"kept": 10**400, "tokens": HOSTILE}}, {**plain, "stage": HOSTILE}]
    odd += [{**plain, "event": "trained", "tokens": True}]
    file = result.folder / "logs" / "events.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(event) + "\n" for event in strange))
    assert read_times(result.folder) is None
    file.write_text("".join(json.dumps(event) + "\n" for event in [plain, *strange, *odd]))
    times = read_times(result.folder)
    assert [(stage.round, stage.stage) for stage in times.stages] == [(0, "generate"), (0, HOSTILE)]
    assert (times.began, times.ended, times.told) == (98.0, 100.0, True)
    result.ablation = {
        "seeds": HOSTILE, "rows": dict.fromkeys(ARMS, 1), "arms": dict.fromkeys(ARMS, dict.fromkeys(("mean", "low", "high"))),
        "differences": dict.fromkeys(ARMS[1:], dict.fromkeys(("mean", "low", "high"))),
    }  # fmt: skip
    result.evaluations[0] = {"policy": {"exact_match": 0.5, "n": 1}, "before": {"policy": {"exact_match": 0.5, "n": 1}}}
    result.written["inputs"] = {"data.sft.a&b.jsonl": "0123"}
    text = page.page(result)
    assert "<script>alert" not in text and text.count("<script") == 2
    assert f"of round 0, {HOSTILE} seeds" in Strict(text).text
    assert "<dt>data.sft.a&amp;b.jsonl</dt>" in text
    for seconds in (math.inf, 1e300, -1.0, HOSTILE, 101.0):
        file.write_text(json.dumps({**plain, "seconds": seconds}))
        assert read_times(result.folder).told is False and page.page(result)


def test_the_seconds_before_a_stop_count(tmp_path, monkeypatch):
    """A stage that was stopped has no totals, and what the next start counts was made in both: 40 rows in 8 + 2 seconds."""
    out = run_of(tmp_path, [scored("p", i) for i in range(4)]).folder
    shutil.rmtree(out / "round-0" / "decisions")
    config = from_yaml(out / "run.yaml")

    def stops(context, *known):
        raise Stopped("the run was told to stop")

    with monkeypatch.context() as patched, Folder.open(out, config, writer=True) as opened:
        patched.setattr(loop.select, "run", stops)
        with pytest.raises(Stopped):
            loop.run_stage("select", config, opened, ALONE, Console(speaks=False), round=0)
    file = out / "logs" / "events.jsonl"
    (event,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert (event["event"], event["stage"], event["round"]) == ("stopped", "select", 0) and "totals" not in event
    result = report.read(out)
    assert "the last stage that was stopped is select of round 0" in page.page(dataclasses.replace(result, evaluations={}))
    ended = {**event, "event": "stage", "totals": {"kept": 40, "rows_in": 50}}
    starts = [{**event, "time": 108.0, "seconds": 8.0}, {**ended, "time": 120.0, "seconds": 2.0}]
    file.write_text("".join(json.dumps(one) + "\n" for one in starts))
    (stage,) = read_times(out).stages
    assert (stage.rows, stage.seconds, stage.stopped) == (40, 10.0, False)
    assert read_times(out).accepted_per_hour() == pytest.approx(40 * 360) and read_times(out).idle == pytest.approx(0.5)


def test_a_loop_says_how_long_each_stage_took(tmp_path):
    out = run_of(tmp_path, [scored("p", i) for i in range(4)]).folder
    shutil.rmtree(out / "round-0" / "decisions")
    config = from_yaml(out / "run.yaml")
    with Folder.open(out, config, writer=True) as opened:
        loop.run_stage("select", config, opened, ALONE, Console(speaks=False), round=0)
    times = read_times(out)
    assert times.told and [stage.stage for stage in times.stages] == ["select"] and times.stages[0].rows == 4


def test_no_rows_no_page_of_rows(tmp_path):
    assert read_rows(tmp_path / "round-0", 0, settings("x", 1), 10, 10) is None


def test_the_same_run_gives_the_same_page(tmp_path):
    result = run_of(tmp_path, [scored(f"p{i}", helpfulness=i / 10) for i in range(40)])
    assert page.page(result) == page.page(result)
