"""Rows: what is accepted, what is set aside and why, and that writing and reading lose nothing."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.errors import RowError, UserError
from nemo_sdg.records import (
    Decision,
    Labelled,
    Prompt,
    Response,
    hash_of,
    Scored,
    parse_turns,
    read_rows,
    shortest_float32,
)

ASKED = [{"role": "user", "content": "Add 2 and 3."}]
SCORES = dict(helpfulness=3.5, correctness=4.0, coherence=3.9, complexity=0.1, verbosity=-0.25)
LABELS = dict(helpfulness=3, correctness=4, coherence=4, complexity=1, verbosity=0)


def write(path: Path, *lines: object) -> Path:
    text = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def reason(row: dict, kind: type = Prompt) -> str:
    with pytest.raises(RowError) as caught:
        kind.from_row(row, "f.jsonl:3")
    return str(caught.value)


def test_a_prompt_is_messages_or_text_and_its_id_defaults_to_its_content():
    by_text, by_messages = Prompt.from_row({"prompt": "Add 2 and 3."}), Prompt.from_row({"messages": ASKED})
    assert by_text == by_messages and by_text.messages == tuple(ASKED)
    assert by_text.id != Prompt.from_row({"prompt": "Add 2 and 4."}).id
    assert Prompt.from_row({"id": 7, "prompt": "x", "task": "add"}).to_row() == {
        "id": "7",
        "messages": [{"role": "user", "content": "x"}],
        "task": "add",
    }


def test_a_prompt_in_helpsteer_form_becomes_turns():
    text = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAdd 2\nand 3."
    turns = Prompt.from_row({"prompt": text}).messages
    assert [(t["role"], t["content"]) for t in turns] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add 2\nand 3."),
    ]
    assert parse_turns("a <extra_id_1>User b") == ({"role": "user", "content": "a <extra_id_1>User b"},)


@pytest.mark.parametrize(
    "row, said",
    [
        ({}, "either 'messages' or 'prompt'"),
        ({"prompt": "a", "messages": ASKED}, "found messages and prompt"),
        ({"prompt": "  "}, "prompt has no text"),
        ({"prompt": 3}, "found int"),
        ({"messages": []}, "not a list of turns"),
        ({"messages": ["hi"]}, "not a list of turns"),
        ({"messages": [{"role": "user", "content": ""}]}, "has no text"),
        ({"messages": [{"role": "user", "content": None}]}, "has no text"),
        ({"messages": ASKED + ASKED}, "do not alternate"),
        ({"messages": [{"role": "system", "content": "x"}]}, "do not alternate"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "found tool"),
        ({"messages": ASKED + [{"role": "assistant", "content": "5"}]}, "last turn is not the user's"),
        ({"prompt": "say <extra_id_1> now"}, "control piece, found <extra_id_1>"),
        ({"prompt": "half \ud800"}, "surrogate"),
        ({"id": True, "prompt": "x"}, "not a name"),
        ({"id": "", "prompt": "x"}, "not a name"),
    ],
)
def test_a_prompt_without_usable_text_is_refused(row: dict, said: str):
    assert said in reason(row) and reason(row).startswith("f.jsonl:3: ")


def test_rows_come_back_as_they_were_written():
    response = Response("p#1", "p", 1, tuple(ASKED), "5", (9, 8), "length", {"round": 0}, {"task": "add"})
    scored = Scored(**vars(response), scores=SCORES)
    decision = Decision(**vars(scored), kept=False, reason="helpfulness below 3", scalar=1.5)
    for row in (response, scored, decision):
        assert type(row).from_row(json.loads(json.dumps(row.to_row(), allow_nan=False))) == row


def test_what_is_believed_of_a_sealed_row_is_what_checking_it_gives():
    extra = {"task": "add", "kept": "theirs", "scores": "theirs", "prompt": "theirs", "nested": {"id": [None, 1.5]}}
    response = Response("p#1", "p", 1, tuple(ASKED), " \u2028\n\"5\" ü😀", (9, 8), "length", {"round": 0}, extra)
    scored = Scored(**vars(response), scores={**SCORES, "verbosity": -100.0})
    decisions = [Decision(**vars(scored), kept=kept, reason=why, scalar=1.5) for kept, why in ((True, None), (False, "x"))]
    for row in (scored, *decisions):
        line = json.dumps(row.to_row())
        there = {name: value for name, value in json.loads(line).items() if name != "prompt"}  # no file has both
        found = type(row).believed(json.loads(json.dumps(there)))
        assert found == type(row).from_row(there) and vars(found).keys() == vars(row).keys()
    nan = dataclasses.replace(decisions[1], scores={**SCORES, "coherence": math.nan}, scalar=math.nan)
    found = Decision.believed(json.loads(json.dumps(nan.to_row())))
    assert math.isnan(found.scores["coherence"]) and math.isnan(found.scalar) and not found.kept


def test_a_column_of_the_users_never_replaces_ours():
    prompt = Prompt.from_row({"id": "p", "prompt": "x", "response": "theirs", "source": "web"})
    row = Response("p#0", "p", 0, prompt.messages, "ours", extra=prompt.extra).to_row()
    assert row["response"] == "ours" and row["source"] == "web"


def test_a_response_may_be_the_last_message():
    row = {"messages": ASKED + [{"role": "assistant", "content": "5"}]}
    assert Response.from_row(row).response == "5" and Response.from_row(row).messages == tuple(ASKED)
    assert "no response" in reason({"messages": ASKED}, Response)
    assert "finish_reason" in reason({"prompt": "x", "response": "y", "finish_reason": "why"}, Response)
    assert "token ids" in reason({"prompt": "x", "response": "y", "response_token_ids": [1.5]}, Response)


def test_a_score_that_is_not_finite_is_null_in_the_file_and_nan_in_memory():
    scored = Scored("p#0", "p", 0, tuple(ASKED), "5", scores={**SCORES, "helpfulness": math.nan, "verbosity": math.inf})
    row = scored.to_row()
    assert row["scores"]["helpfulness"] is None and row["scores"]["verbosity"] is None
    assert math.isnan(Scored.from_row(row).scores["helpfulness"])
    assert "correctness is missing" in reason({**row, "scores": {"helpfulness": 3}}, Scored)
    assert "not a number" in reason({**row, "scores": {**SCORES, "coherence": "4"}}, Scored)


def test_a_decision_keeps_or_gives_a_reason():
    row = Decision("p#0", "p", 0, tuple(ASKED), "5", scores=SCORES, kept=True, reason=None, scalar=1.0).to_row()
    for wrong in ({"reason": "no"}, {"kept": False}, {"kept": None}):
        assert "keeps a row or gives a reason" in reason({**row, **wrong}, Decision)


@pytest.mark.parametrize("value", [-100, 5, -1, 4.01, None, "3", True, "absent"])
def test_a_label_outside_0_to_4_or_missing_is_refused(value: object):
    row = {"prompt": "x", "response": "y", **LABELS, "coherence": value}
    if value == "absent":
        del row["coherence"]
    assert "coherence" in reason(row, Labelled)
    assert Labelled.from_row({"prompt": "x", "response": "y", **LABELS}).labels == LABELS


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_shortest_decimal_is_the_same_float32(value: float):
    short = shortest_float32(value)
    assert struct.pack("<f", short) == struct.pack("<f", value) and digits(short) <= digits(value)


@given(st.floats(min_value=-5, max_value=5), st.integers(0, 9))
def test_no_shorter_decimal_is_the_same_float32_also_of_what_is_short_already(value: float, decimals: int):
    for one in (value, round(value, decimals), struct.unpack("<f", struct.pack("<f", value))[0]):
        all_digits = (float(f"{one:.{digits}g}") for digits in range(1, 18))
        same = next(x for x in all_digits if struct.pack("<f", x) == struct.pack("<f", one))
        assert repr(shortest_float32(one)) == repr(same)


def digits(value: float) -> int:
    """Significant ones: 1000000000000.0 has one."""
    return len(repr(value).split("e")[0].replace(".", "").replace("-", "").strip("0"))


def test_shortest_decimal_known_answers():
    assert shortest_float32(struct.unpack("<f", struct.pack("<f", 3.1))[0]) == 3.1
    assert [shortest_float32(x) for x in (0.0, 4.0, math.nan, math.inf, 1e39)] == [0.0, 4.0, None, None, None]
    assert [repr(shortest_float32(x)) for x in (0.0, -0.0, 3, 2.0**-149)] == ["0.0", "-0.0", "3.0", "1e-45"]


def test_faulty_lines_are_set_aside_and_the_others_go_on(tmp_path: Path):
    file = write(
        tmp_path / "p.jsonl",
        {"id": "a", "prompt": "one"},
        b'{"id": "b", "prompt": ',
        b'{"id": "c", "prompt": "x", "weight": NaN}',
        b'{"id": "d", "prompt": "x", "prompt": "y"}',
        b"[1, 2]",
        b'"\xff"',
        b"",
        b"[" * 200_000,
        {"id": "a", "prompt": "again"},
        {"id": "e"},
        b'{"id": "f", "prompt": "x", "n": ' + b"9" * 5000 + b"}",
        b'{"id": "g", "prompt": "x", "note": "\\ud800"}',
        '{"id": "h", "prompt": "two\u2028lines\u0085"}'.encode(),
    )
    rows, faults = read_rows(file, Prompt)
    assert [row.id for row in rows] == ["a", "h"]
    assert rows[1].messages[0]["content"] == "two\u2028lines\u0085"
    said = {fault.line: fault.reason for fault in faults}
    for line, part in {
        2: "broken JSON",
        3: "NaN is not JSON",
        4: "'prompt' stands twice",
        5: "not a JSON object but list",
        6: "not UTF-8",
        8: "nested too deeply",
        9: "'a' stands in line 1 already",
        10: "no single prompt",
        11: "digits",
        12: "not UTF-8",
    }.items():
        assert part in said[line], (line, said[line])
    assert sorted(said) == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert all(fault.file == str(file) for fault in faults)


def test_gzip_bom_and_a_last_line_without_its_end(tmp_path: Path):
    packed = write(tmp_path / "p.jsonl.gz", {"id": "a", "prompt": "one"}, {"id": "b", "prompt": "two"})
    assert [row.id for row in read_rows(packed, Prompt)[0]] == ["a", "b"]
    plain = tmp_path / "bom.jsonl"
    plain.write_bytes(b'\xef\xbb\xbf{"id": "a", "prompt": "one"}\r\n{"id": "b", "prompt": "two"}')
    assert [row.id for row in read_rows(plain, Prompt)[0]] == ["a", "b"]
    packed.write_bytes(packed.read_bytes()[:-12])
    for bad in (packed, tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot read the rows"):
            read_rows(bad, Prompt)


@pytest.mark.parametrize(("name", "expected"), [(0, "0"), (7, "7"), ("", None), (None, None)])
def test_nought_is_the_name_of_a_prompt(name, expected):
    row = {"prompt": "x", "response": "y", "prompt_id": name}
    assert Response.from_row(row).prompt_id == (expected or hash_of([{"role": "user", "content": "x"}]))


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"prompt": "a", "x": 1e999}', "JSON"),
        (b'{"prompt": "a", "response": "b", "provenance": "web"}', "provenance is not a mapping"),
        (b'{"prompt": "a", "response": "b", "prompt_id": true}', "not a name"),
    ],
)
def test_what_could_not_be_written_again_is_set_aside(tmp_path, line, reason):
    (tmp_path / "rows.jsonl").write_bytes(
        line + b'\n{"prompt": "good", "response": "b", "provenance": null, "prompt_id": null}\n'
    )
    rows, faults = read_rows(tmp_path / "rows.jsonl", Response)
    assert len(rows) == len(faults) == 1 and faults[0].line == 1
    assert reason in faults[0].reason
    assert rows[0].provenance == {} and rows[0].prompt_id != "None"


def test_a_broken_gz_file_is_one_sentence(tmp_path):
    whole = gzip.compress(b'{"prompt": "a"}\n' * 2000)
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[:40] + b"\xff" * 20 + whole[60:])
    with pytest.raises(UserError, match="cannot read the rows"):
        read_rows(tmp_path / "rows.jsonl.gz", Prompt)
