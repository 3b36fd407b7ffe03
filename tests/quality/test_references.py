"""Leaks of evaluation files and copies of the user's own rows."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import planted
import pytest

from nemo_sdg.config import Select
from nemo_sdg.errors import UserError
from nemo_sdg.quality import Selector, decide
from nemo_sdg.quality.references import References, read
from nemo_sdg.quality.text import tokens

TWENTY = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def write(path: Path, *rows: dict) -> str:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def leak(references: References, prompt: str, response: str = "no") -> str | None:
    return references.leak([("user", tokens(prompt)), ("assistant", tokens(response))])


def test_thirteen_words_in_a_row_are_a_leak_and_twelve_are_not(tmp_path: Path):
    references = References([write(tmp_path / "e.jsonl", {"text": "x"}, {"question": TWENTY})], 13)
    some = TWENTY.split()
    found = f"{tmp_path}/e.jsonl:2"
    assert leak(references, " ".join(["before", *some[2:15], "after"])) == found
    assert leak(references, "what?", " ".join(some[:13])) == found
    assert leak(references, " ".join(["before", *some[2:14], "after"])) is None
    assert leak(references, " ".join([*some[:7], "other", *some[7:14]])) is None
    assert leak(references, "«" + " - ".join(some[:13]).upper() + "!»") == found
    assert References([f"{tmp_path}/e.jsonl"], 12).leak([("user", tokens(" ".join(some[2:14])))]) == found


def test_characters_count_where_words_are_not_spaced_whatever_stands_around_them(tmp_path: Path):
    text = "次の文章を読んで、筆者が最も伝えたいことを三十字以内で答えなさい。"
    references = References([write(tmp_path / "e.jsonl", {"prompt": text})], 13)
    assert leak(references, "Translate this sentence from Japanese into English please: " + text) is not None
    assert leak(references, "問題です。" + text.replace("、", " ").replace("。", "！")) is not None
    assert leak(references, text[:14]) is None  # half of it, 13 characters and a mark


def test_a_short_question_counts_as_a_whole_turn_and_a_short_answer_never(tmp_path: Path):
    rows = {"question": "What is 2+2?", "answer": "4"}, {"text": "to be"}
    chat = {"messages": [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "plum"},
                         {"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "bye"}]}  # fmt: skip
    references = References([write(tmp_path / "e.jsonl.gz", *rows, chat)], 13)
    assert leak(references, "what is 2 2") and leak(references, "To be!") and leak(references, "q", "to be")
    assert leak(references, "name a fruit") is not None
    for prompt, response in (("Say: what is 2+2?", "4"), ("q", "What is 2+2?"), ("4", "4"), ("Thanks", "plum"), ("?!", "!")):
        assert leak(references, prompt, response) is None, (prompt, response)


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"id": 1}', "found id, expected a text in messages, prompt, question"), ("{}", "no column"), ("[1]", "JSON object"),
        ('{"text": 5}', "no text to compare with"), ("{", "broken JSON"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_looked_for_is_an_error_that_names_it(line: str, said: str, tmp_path: Path):
    file = tmp_path / "e.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError) as caught:
        list(read(str(file)))
    assert said in str(caught.value) and f"{file}:2" in str(caught.value)
    with pytest.raises(UserError, match="cannot read the rows"):
        list(read(str(tmp_path / "absent.jsonl")))


@pytest.mark.parametrize("language", planted.LANGUAGES)
def test_planted_leaks_are_found_and_nothing_else(language: str, tmp_path: Path):
    rng = random.Random(5)
    secret = [planted.text(rng, language, 30) for _ in range(40)]
    file = write(tmp_path / "e.jsonl", *({"question": text} for text in secret))
    rows, leaked = [], set()
    for number in range(400):
        prompt, response = planted.text(rng, language, 30), planted.text(rng, language, 60)
        if number < 120:
            leaked.add(f"r{number}#0")
            text = secret[number % 40] if number % 3 else planted.disguised(secret[number % 40], language)
            around = planted.text(rng, language, 40) + " "
            prompt, response = (text, response) if number < 60 else (prompt, around + text + " " + around)
        rows.append(planted.row(f"r{number}", prompt, response))
    decisions = decide(rows, Select(minimum={}, decontaminate=[file]))
    found = {d.id for d in decisions if not d.kept}
    assert planted.rates(leaked, found) == (1.0, 1.0)
    assert {d.reason for d in decisions if not d.kept} == {"shares a text with an evaluation file"}
    assert decisions[1].to_row()["leaked_from"] == f"{file}:2"


def test_copies_are_counted_and_too_many_refused(tmp_path: Path):
    file = write(tmp_path / "own.jsonl", {"prompt": TWENTY, "response": "a short answer"}, {"prompt": "hello there"})
    copy, half = TWENTY + " and some more", " ".join(TWENTY.split()[:13]) + " but then something of its own that goes on"
    rows = [
        planted.row("a", copy, "1"), planted.row("b", half, "2"), planted.row("c", "x", TWENTY),
        planted.row("d", "Hello there!", "3"), planted.row("e", "y", "a short answer"), planted.row("f", "z", "4"),
    ]  # fmt: skip
    settings = Select(minimum={}, likeness=file, maximum_copies=0.5)
    selector = Selector(settings)
    for row in rows:
        selector.add(row)
    selector.settle()
    assert all(d.kept for d in selector.decisions(rows))
    assert selector.totals()["variety"]["copies"] == 0.5  # a, c and d
    with pytest.raises(UserError, match=r"copy your own, found 0.6000 of them, expected at most select.maximum_copies"):
        decide(rows[:5], settings)


def test_half_of_a_text_is_a_copy_and_of_two_places_the_first_is_named(tmp_path: Path):
    files = [write(tmp_path / f"{name}.jsonl", {"question": "one two three", "text": "to be"}) for name in "ab"]
    references = References(files, 1)
    for question, copied in (("one x", True), ("one x y", False)):
        assert references.copied(tokens(question), tokens("z")) is copied
    assert leak(References(files, 13), "to be") == leak(References(files, 2), "one two") == f"{files[0]}:1"
