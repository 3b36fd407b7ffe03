"""Personal data: known numbers, what only looks like one, and what redaction leaves."""

from __future__ import annotations

import random
import signal
import sys
from dataclasses import replace

import planted
import pytest

from nemo_sdg.config import Select
from nemo_sdg.errors import ConfigError
from nemo_sdg.quality import decide, personal
from nemo_sdg.quality.personal import find, luhn, my_number, redact
from nemo_sdg.quality.presidio import finder


@pytest.mark.parametrize(
    "text, kind",
    [
        ("write to jane.doe+news@mail.example.co.uk.", "EMAIL"),
        ("メールはtaro@example.jpまで", "EMAIL"),
        ("card 4111 1111 1111 1111, 12/27", "CARD"),
        ("5555555555554444", "CARD"),
        ("3782-822463-10005", "CARD"),
        ("カード番号は４１１１　１１１１　１１１１　１１１１です", "CARD"),
        ("IBAN GB82 WEST 1234 5698 7654 32 IS MINE", "IBAN"),
        ("DE89370400440532013000", "IBAN"),
        ("GB60WEST11111111111111111111111111", "IBAN"),  # 34 characters, the most
        ("マイナンバーは123456789018です", "MY_NUMBER"),
        ("1234 5678 9018", "MY_NUMBER"),
        ("マイナンバー123456789018", "MY_NUMBER"),
        ("カードナンバー４１１１ー１１１１ー１１１１ー１１１１", "CARD"),
        ("フリーダイヤルナンバー0120-123-456", "PHONE"),
        ("SSN: 219-09-9999", "SSN"),
        ("NI number AB123456C", "NINO"),
        ("call (212) 555-0123 now", "PHONE"),
        ("call 1-212-555-0123.", "PHONE"),
        ("212.555.0123", "PHONE"),
        ("+44 20 7946 0958", "PHONE"),
        ("+81-3-1234-5678", "PHONE"),
        ("電話は03-1234-5678へ", "PHONE"),
        ("０９０ー１２３４ー５６７８", "PHONE"),
        ("09012345678", "PHONE"),
        ("0120-123-456", "PHONE"),
        ("+4. 4. 2. 0. 7. 9. 4. 6", "PHONE"),
    ],
)
def test_known_ones(text: str, kind: str):
    assert [span[2] for span in find(text)] == [kind]
    clean, counts = redact(text, find(text))
    assert counts == {kind: 1} and f"[{kind}]" in clean and not find(clean)


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112", "5555555555554445", "1234567890123", "GB82 WEST 1234 5698 7654 33", "GB23WEST111111111111111111111111111", "123456789019",
        "000-12-3456", "666-12-3456", "123-00-4567", "GB123456C", "2026-11-24", "01-02-2026", "12:30:15", "192.168.100.200",
        "3.14159265358979", "1,234,567,890", "212 + 555 - 0123 = 644", "ISBN 978-3-16-148410-0", "a@b", "@decorator",
        "x@y.", "1 2 3 4 5 6 7 8 9 10 11 12 13 14", "20261124133000", "1764000000000", "f(x) = x - 1",
        "deadbeef-1234-5678-9012-abcdefabcdef", "112233445566778899001122334455", "東京2026年11月24日", "1ー234ー5678ー90",
    ],
)  # fmt: skip
def test_what_is_none(text: str):
    assert find(text) == []


def test_check_digits():
    assert luhn("79927398713") and not any(luhn(f"7992739871{digit}") for digit in "012456789")  # the patent's example
    assert my_number("123456789018") and not any(my_number(f"12345678901{digit}") for digit in "012345679")


def test_no_pattern_backtracks_for_ever():
    hostile = ("a" * 50_000, "1 " * 30_000, "+1" * 30_000, "a@" * 30_000, "a.@a." * 10_000, "AB12 " * 10_000, "0-" * 30_000)
    signal.alarm(120)  # seconds of a test that takes less than one, or hours
    try:
        assert [len(find(text)) for text in hostile] == [0] * len(hostile)
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("language", planted.LANGUAGES)
def test_all_planted_kinds_are_found_in_running_text_and_nothing_else(language: str):
    rng = random.Random(3)
    where, found = set(), set()
    for number in range(400):
        some = planted.words(rng, language, 60)
        kinds = list(planted.PERSONAL)
        if number % 2:
            kind = kinds[number // 2 % len(kinds)]
            some.insert(rng.randrange(60), f" {rng.choice(planted.PERSONAL[kind])(rng)} ")
            where.add((number, kind))
        else:
            some.insert(rng.randrange(60), f" {rng.choice(planted.HARMLESS)(rng)} ")
        found |= {(number, span[2]) for span in find(planted.joined(some, language))}
    precision, recall = planted.rates(where, found)
    assert precision >= 0.99 and recall >= 0.98, (sorted(found - where), sorted(where - found))


def test_off_drop_and_redact():
    rows = [
        planted.row("a", "who?", "jane@example.com or (212) 555-0123, or joe@example.com"),
        planted.row("b", "I am jane@example.com", "fine"),
        planted.row("c", "who?", "nobody"),
    ]
    rows[0] = replace(rows[0], response_token_ids=(1, 2))
    assert all(d.kept for d in decide(rows, Select(minimum={})))
    assert [d.reason for d in decide(rows, Select(minimum={}, pii="drop"))] == [
        "personal data in the response: EMAIL", "personal data in the prompt: EMAIL", None,
    ]  # fmt: skip
    redacted, dropped, plain = decide(rows, Select(minimum={}, pii="redact"))
    assert redacted.kept and redacted.response == "[EMAIL] or [PHONE], or [EMAIL]"
    assert redacted.scores == rows[0].scores and redacted.response_token_ids == ()
    assert redacted.to_row()["redacted"] == {"EMAIL": 2, "PHONE": 1}
    assert dropped.reason == "personal data in the prompt: EMAIL" and dropped.messages == rows[1].messages
    assert plain.kept and "redacted" not in plain.to_row()
    again = decide([redacted], Select(minimum={}, pii="redact"))[0]
    assert again.response == redacted.response and again.to_row()["redacted"] == {"EMAIL": 2, "PHONE": 1}


def test_what_is_found_does_not_follow_from_where_one_looks_first():
    """Windows and digits that are near each other only save time: with a look at everything the same is found."""
    rng = random.Random(8)
    makers = [*(maker for makers in planted.PERSONAL.values() for maker in makers), *planted.HARMLESS]
    signs = "0123456789 -().+@/,:AB\n０１９－ー　日\U00020000"
    count = 0
    for _ in range(3000):
        parts = [rng.choice(makers)(rng), "".join(rng.choices(signs, k=rng.randint(0, 30))), rng.choice(makers)(rng)]
        text = rng.choice(("", " ", "、")).join(parts)
        plain, found = personal._LONG_VOWEL.sub("-", text.translate(personal._WIDE)), []
        for start, end, kind in [(m.start(), m.end(), "EMAIL") for m in personal._EMAIL.finditer(plain)]:
            found.append((start, end, kind))
        for finder in (personal._ibans, personal._numbers, personal._nationals, personal._phones):
            for span in finder(plain, 0, len(plain)):
                if all(span[1] <= other[0] or other[1] <= span[0] for other in found):
                    found.append(span)
        assert find(text) == sorted(found), text
        count += len(found)
    assert count > 2000


def test_presidio_is_asked_for_by_name_and_its_absence_is_told(monkeypatch):
    finder.cache_clear()
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(ConfigError, match="presidio is not installed.*pip install 'nemo-sdg.presidio.'"):
        decide([planted.row("a", "who?", "nobody")], Select(minimum={}, pii="redact", pii_engine="presidio"))
    assert decide([planted.row("a", "who?", "nobody")], Select(minimum={}, pii_engine="presidio"))[0].kept, "pii is off"


def test_presidio_finds_what_the_rules_do_not(tmp_path):
    """With a model that knows no words: presidio's own patterns alone. An address of the network is none of our rules."""
    pytest.importorskip("presidio_analyzer")
    import spacy

    finder.cache_clear()
    spacy.blank("en").to_disk(tmp_path / "en_blank")
    settings = Select(minimum={}, pii="redact", pii_engine="presidio", pii_model=str(tmp_path / "en_blank"))
    row = planted.row("a", "who?", "ask jane@example.com at 192.168.100.200 on 2026-11-24")
    assert decide([row], settings)[0].response == "ask [EMAIL] at [IP_ADDRESS] on 2026-11-24"
    assert decide([row], replace(settings, pii_engine="rules"))[0].response.startswith("ask [EMAIL] at 192")
    with pytest.raises(ConfigError, match="no such model of spaCy's, found en_core_web_none"):
        decide([row], replace(settings, pii_model="en_core_web_none"))
