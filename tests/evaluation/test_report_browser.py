"""The page in a real browser: it asks for nothing, says nothing in the console, and selects as the selection does."""

from __future__ import annotations

import base64
import dataclasses
import math
import shlex
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from evaluation.browser import browser, complaints, move, needs_chromium, opened, requests
from evaluation.pages import decided, drawn, rows_of, run_of, scored
from rounds import ALONE

from nemo_sdg import cli, loop
from nemo_sdg.config import ATTRIBUTES, Select, from_yaml, load
from nemo_sdg.console import Console
from nemo_sdg.evaluation.report import page, whatif
from nemo_sdg.evaluation.report.rows import SHARE
from nemo_sdg.quality.ranking import cut, length_honesty
from nemo_sdg.quality.rules import scalarise
from nemo_sdg.records import Scored
from nemo_sdg.store import Run, StageStore

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def driver():
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The page of a run whose rows are drawn."""
    rows = drawn(np.random.default_rng(5), 400)
    return page.write(run_of(tmp_path_factory.mktemp("small"), rows, "select.minimum={helpfulness: 2.0}"))


def accepted(driver) -> list[str]:
    return driver.execute_script("return WhatIf.accepted()")


def test_it_opens_quietly_and_begins_as_the_run_decided(driver, small):
    assert opened(driver, small) == []
    rows = list(StageStore.finished(small.parent / "round-0/decisions").read())
    assert accepted(driver) == [row["id"] for row in rows if row["kept"]] != []
    assert driver.find_element("id", "command").text == ""
    for name in ("enter-count", "leave-count"):
        assert driver.find_element("id", name).text == "0"


def test_a_moved_slider_shows_the_rows_and_its_command_makes_them(driver, small):
    """The printed command, then the one that the fork prints, but for selection alone, which needs no model."""
    opened(driver, small)
    before = set(accepted(driver))
    for label, value in (
        ("minimum of helpfulness", 1.25),
        ("maximum of verbosity", 3.5),
        ("weight of coherence", -0.4),
    ):
        move(driver, label, value)
    move(driver, "best responses of a prompt", 2)
    shown = accepted(driver)
    assert set(shown) - before and before - set(shown), "nothing moved, so this shows nothing"
    said = {name: int(driver.find_element("id", name).text) for name in ("enter-count", "leave-count", "count")}
    assert said == {
        "enter-count": len(set(shown) - before),
        "leave-count": len(before - set(shown)),
        "count": len(shown),
    }
    listed = {cell.text for cell in driver.find_elements("css selector", "#enter code")}
    assert listed <= set(shown) - before and len(listed) == min(50, said["enter-count"])

    words = shlex.split(driver.find_element("id", "command").text)
    run, new = small.parent, Path(f"{small.parent}-what-if")
    assert words[:4] == ["nemo-sdg", "fork", str(run), str(new)]
    assert cli.main(words[1:]) == 0
    config = from_yaml(new / "run.yaml")
    assert (config.select.per_prompt, config.select.maximum) == (2, {"verbosity": 3.5})
    with Run.open(new, config, writer=True) as opened_run:
        loop.run_stage("select", config, opened_run, ALONE, Console(speaks=False), round=0)
    rows = list(StageStore.finished(new / "round-0/decisions").read())
    assert [row["id"] for row in rows if row["kept"]] == shown
    assert complaints(driver) == [] and requests(driver) == []


def numbers(settings: Select) -> dict:
    return {name: getattr(settings, name) for name in (*whatif.OFFERED, *whatif.FOLLOWED)}


def limits(rng: np.random.Generator) -> dict:
    """Settings that the page changes, drawn."""
    some = [name for name in ATTRIBUTES if rng.random() < 0.3]
    # One weight alone makes many ties.
    weights = {name: float(rng.normal()) for name in ATTRIBUTES if rng.random() < 0.8} or {"verbosity": -1.0}
    return {
        "minimum": {name: float(rng.integers(0, 8) / 4) for name in some},
        "maximum": {name: float(rng.integers(9, 17) / 4) for name in some if rng.random() < 0.5},
        "weights": weights if rng.random() < 0.6 else {"coherence": 1.0},
        "minimum_scalar": None if rng.random() < 0.6 else float(rng.normal()),
        "per_prompt": None if rng.random() < 0.4 else int(rng.integers(1, 4)),
    }


@pytest.mark.parametrize("seed", range(32))
def test_the_rule_of_the_page_is_that_of_selection(driver, small, tmp_path, seed):
    """The rows that it accepts, at other settings than those of the run, are those that selection would keep: exactly."""
    rng = np.random.default_rng(seed)
    fixed = {
        "unique": bool(seed % 2), "length_free": seed % 3 == 0, "percentile": [None, 37.5, 10.0][seed % 3],
        "target": 20 if seed % 4 == 1 else None, "pii": "drop" if seed % 5 == 0 else "off",
    }  # fmt: skip
    if late := seed >= 24:  # what the page cannot decide anew, late among the rules: it holds for the run's settings
        fixed |= {"near_duplicates": 0.6, "shingle": 2} if seed % 3 != 1 else {}
        fixed |= {"balance": {"topic": 0.4, "kind": 0.6}} if seed % 3 != 0 else {}
        fixed["percentile"] = [None, 37.5][seed % 2]
    rows = drawn(rng, 200, revisions=seed % 2 == 0, waves=3 if fixed["target"] else 1)
    if late:
        groups = [{"topic": str(rng.choice(list("aaaabbc"))), "kind": str(rng.choice(list("xxy")))} for _ in rows]
        rows = [dataclasses.replace(row, extra={**row.extra, **group}) for row, group in zip(rows, groups)]
    rows[7] = dataclasses.replace(rows[7], response="write to jane@example.com")
    config = load("tiny", [f"revise.passes={1 - seed % 2}"])
    before = Select(**fixed, **limits(rng))
    if late:
        before = dataclasses.replace(before, minimum={}, maximum={}, minimum_scalar=None)
    # All waves have candidates, as if the target had needed them.
    made = decided(rows, before if late else dataclasses.replace(before, target=None))
    found = rows_of(tmp_path, made, before, config)
    carried = whatif.of_round(found, before, versions=config.revise.passes > 0, text_bytes=1000)
    opened(driver, small)
    tried = [dataclasses.replace(before, **limits(rng)) for _ in range(12)]
    for settings in tried[::2]:  # a row's own scalar, to the last digit: the limit itself passes
        scalar = scalarise(rows[rng.integers(len(rows))].scores, settings.weights)
        settings.minimum_scalar = scalar if math.isfinite(scalar) else None
    tried = [before] if late else [before, *tried]
    told = driver.execute_script(
        "const rows = WhatIf.read(arguments[0]);"
        "return arguments[1].map((settings) => {"
        "  const reasons = Selection.decide(rows, settings).reasons;"
        "  const kept = Uint8Array.from(reasons, (reason) => reason === Selection.PASSED ? 1 : 0);"
        "  return [rows.ids.filter((_, row) => kept[row]), Figures.longest(rows, kept)]; })",
        carried, [numbers(settings) for settings in tried],
    )  # fmt: skip
    lengths = np.array([len(row.response) for row in made])
    for settings, (ids, longest) in zip(tried, told):
        kept = [row.id for row in (made if late else decided(rows, settings)) if row.kept]
        assert ids == kept, settings
        honesty = length_honesty(lengths, np.isin([row.id for row in made], kept))
        assert longest == (pytest.approx(honesty["longest"], abs=1e-12) if kept else None)
    assert late or len({tuple(ids) for ids, _ in told}) > 3


def test_a_share_of_a_target_that_took_two_waves(driver, tmp_path):
    """Without the balance the first wave would have reached the target; what rank left beyond it no share has dropped."""
    topics = ["b"] * 8 + ["a"] * 15 + ["b"] * 6
    rows = [
        dataclasses.replace(
            scored(f"p{i}", 0, f"text {i}", helpfulness=3.0 if topic == "b" else 2.0 - i / 100),
            extra={"topic": topic}, provenance={"wave": 1} if i >= 23 else {},
        )
        for i, topic in enumerate(topics)
    ]  # fmt: skip
    words = ("select.minimum={}", "select.target=20", "select.balance={topic: 0.5}")
    result = run_of(tmp_path, rows, *words)
    assert opened(driver, page.write(result)) == []
    made = list(StageStore.finished(result.folder / "round-0/decisions").read())
    (found,) = page.rows_of(result)
    assert list(found.flags).count(SHARE) == 4 and accepted(driver) == [row["id"] for row in made if row["kept"]]
    assert len(accepted(driver)) == 20


def test_sums_and_percentiles_are_those_of_python(driver, small):
    opened(driver, small)
    rng = np.random.default_rng(3)
    sums = [
        [1e16, 1.0, -1e16],
        [0.1] * 10,
        [1e100, 1.0, -1e100, 1e-20],
        [],
        *(rng.normal(size=7) * 10.0 ** rng.integers(-20, 20, 7) for _ in range(500)),
    ]
    sums = [list(map(float, values)) for values in sums]
    found = driver.execute_script("return arguments[0].map((values) => Selection.fsum(values, values.length))", sums)
    assert found == [math.fsum(values) for values in sums]
    some = [(rng.normal(size=n).tolist(), float(rng.random() * 100)) for n in range(1, 200)]
    found = driver.execute_script(
        "return arguments[0].map(([values, share]) => Selection.percentile(values, share))", some
    )
    assert found == [cut(np.array(values), share) for values, share in some]


def test_rows_stay_text(driver, tmp_path):
    """Nor would anything leave the page if they did not: somebody listens, and nobody comes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stays_text(driver, tmp_path, f"http://127.0.0.1:{listening.getsockname()[1]}/x")
        listening.settimeout(0.3)
        with pytest.raises(TimeoutError):
            listening.accept()


def stays_text(driver, tmp_path, address):
    hostile = f'<script>window.hit = 1</script><img src="{address}" onerror="window.hit = 1">'
    texts = [
        hostile,
        f"</script>{hostile}",
        "<!--<script>",
        "a\u2028b\u2029c",
        "a\x00b\x1b[31mc",
        "\u202eabc",
        "&lt;b&gt; ]]>",
    ]
    rows = [scored(f"p{i}", 0, text, asked=f"{hostile} {i}", helpfulness=i / 2) for i, text in enumerate(texts)]
    rows[0] = dataclasses.replace(rows[0], id=f"{hostile}#0", extra={"topic": hostile})
    file = page.write(run_of(tmp_path, rows, "select.minimum={helpfulness: 1.0}", f"run.name='{hostile}'"))
    assert opened(driver, file) == []
    move(driver, "minimum of helpfulness", "0.2")
    move(driver, "minimum of helpfulness", "3")
    assert driver.execute_script("return window.hit") is None
    assert driver.execute_script("return document.images.length + document.scripts.length") == 2
    body = driver.execute_script("return document.body.innerText")
    assert body.count(hostile) > 3 and driver.title == hostile
    # Whatever got in would be held by the page's policy.
    driver.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", hostile)
    driver.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hit = 1'; document.body.append(s)"
    )
    driver.execute_script("fetch(arguments[0]).catch(() => 0)", address)
    time.sleep(0.2)
    assert driver.execute_script("return window.hit") is None
    assert sum("Content Security Policy" in said for said in complaints(driver)) >= 3


def test_dark_narrow_and_on_paper(driver, small):
    shades = {}
    for scheme in ("light", "dark"):
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        assert opened(driver, small) == []
        colours = driver.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        )
        shades[scheme] = [sum(map(int, colour[4:-1].split(","))) / 3 for colour in colours]
    assert shades["light"][1] - shades["light"][0] > 150 and shades["dark"][0] - shades["dark"][1] > 150
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    )
    assert opened(driver, small) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    printed = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") > 2 and complaints(driver) == []
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_sample_says_that_it_is_one(driver, tmp_path):
    rows = drawn(np.random.default_rng(1), 400)
    file = page.write(run_of(tmp_path, rows), most_rows=100)
    assert opened(driver, file) == []
    assert "of 400 rows" in driver.find_element("id", "sample").text
    assert driver.find_element("id", "count").text.startswith("about ")


def test_settings_that_cannot_be_are_said_and_make_no_command(driver, small):
    opened(driver, small)
    move(driver, "minimum of helpfulness, exactly", "3")
    there = accepted(driver)
    for label, value, said in (
        ("maximum of helpfulness, exactly", "2", "lies above its maximum"),
        ("best responses of a prompt, exactly", "1.5", "a whole number"),
    ):
        move(driver, label, value)
        assert said in driver.find_element("id", "wrong").text and accepted(driver) == there
        assert driver.find_element("id", "command").text == ""
        move(driver, label, "")
    assert driver.find_element("id", "wrong").text == "" and driver.find_element("id", "command").text


def test_the_words_of_the_command_are_read_back(driver, small):
    """Paths that a shell would take apart, limits that go, numbers with an exponent."""
    opened(driver, small)
    move(driver, "minimum of helpfulness, exactly", "")
    move(driver, "lowest scalar, exactly", "1e-7")
    driver.execute_script(
        "const f = document.getElementById('run'); f.value = arguments[0]; f.dispatchEvent(new Event('input'))",
        "/a b/it's",
    )
    words = shlex.split(driver.find_element("id", "command").text)
    assert words[2:4] == ["/a b/it's", "/a b/it's-what-if"]
    config = load("tiny", words[4:])
    assert config.select.minimum == {} and config.select.minimum_scalar == 1e-7


def test_rows_of_the_examples_of_scored(driver, small):
    """The text of a row stands beside its id, in the lists too."""
    opened(driver, small)
    move(driver, "minimum of helpfulness", "0")
    first = driver.find_element("css selector", "#enter tr").text
    rows: dict[str, dict] = {row["id"]: row for row in StageStore.finished(small.parent / "round-0/decisions").read()}
    row = Scored.from_row(rows[driver.find_element("css selector", "#enter code").text])
    assert row.messages[-1]["content"] in first and row.response in first
