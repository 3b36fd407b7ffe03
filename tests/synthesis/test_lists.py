"""Lists as models write them: a corpus of answers with the entries that people see in them, and the guard's laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.synthesis.lists import _checked, parse_list
from nemo_sdg.synthesis.text import folded

ABC = ("Alpha", "Beta", "Gamma")
NAMES = {
    "dots": "1. Alpha\n2. Beta\n3. Gamma",
    "brackets": "1) Alpha\n2) Beta\n3) Gamma",
    "round": "(1) Alpha\n(2) Beta\n(3) Gamma",
    "colons": "1: Alpha\n2: Beta\n3: Gamma",
    "no space": "1.Alpha\n2.Beta\n3.Gamma",
    "introduced": "Here are three names:\n\n1. Alpha\n2. Beta\n3. Gamma\n\nLet me know if you need more!",
    "chatter at once": "1. Alpha\n2. Beta\n3. Gamma\nI hope this helps",
    "blank lines": "1. Alpha\n\n2. Beta\n\n3. Gamma",
    "bold": "1. **Alpha**\n2. **Beta**\n3. **Gamma**",
    "bold number": "**1.** Alpha\n**2.** Beta\n**3.** Gamma",
    "explained": "1. Alpha: the first letter\n2. Beta: the second\n3. Gamma: the third",
    "bold explained": "1. **Alpha**: the first\n2. **Beta:** the second\n3. **Gamma** - the third",
    "dashed": "1. Alpha - the first\n2. Beta – the second\n3. Gamma — the third",
    "sub-bullets": "1. Alpha\n   - one\n   - two\n2. Beta\n   - three\n3. Gamma",
    "sub-bullets flush": "1. Alpha\n- one\n- two\n2. Beta\n- three\n3. Gamma",
    "sub-numbers": "1. Alpha\n   1. one\n   2. two\n2. Beta\n3. Gamma",
    "dashes": "- Alpha\n- Beta\n- Gamma",
    "stars": "* Alpha\n* Beta\n* Gamma",
    "dots of a list": "• Alpha\n• Beta\n• Gamma",
    "letters": "a) Alpha\nb) Beta\nc) Gamma",
    "labels": "Topic 1: Alpha\nTopic 2: Beta\nTopic 3: Gamma",
    "bold labels": "**Topic 1:** Alpha\n**Topic 2:** Beta\n**Topic 3:** Gamma",
    "quoted": '1. "Alpha"\n2. “Beta”\n3. "Gamma"',
    "indented": "  1. Alpha\n  2. Beta\n  3. Gamma",
    "windows": "1. Alpha\r\n2. Beta\r\n3. Gamma\r\n",
    "full stops": "1. Alpha.\n2. Beta.\n3. Gamma.",
    "plain": "Alpha\nBeta\nGamma",
    "plain, apart": "Alpha\n\nBeta\n\nGamma",
    "plain, introduced": "Sure, here you go:\nAlpha\nBeta\nGamma\n\nAnything else?",
    "one line": "Alpha, Beta, Gamma",
    "one line, and": "Alpha, Beta, and Gamma.",
    "one line, introduced": "Three names: Alpha, Beta, Gamma",
    "semicolons": "Alpha; Beta; Gamma",
    "json": '["Alpha", "Beta", "Gamma"]',
    "json escapes": '["\\u0041lpha", "Be\\u0074a", "Gamma"]',
    "json fence": '```json\n["Alpha", "Beta", "Gamma"]\n```',
    "json in talk": 'Here it is: ["Alpha", "Beta", "Gamma"] Enjoy.',
    "json object": '{"topics": ["Alpha", "Beta", "Gamma"]}',
    "json rows": '[{"id": 1, "name": "Alpha"}, {"id": 2, "name": "Beta"}, {"id": 3, "name": "Gamma"}]',
    "yaml fence": "```yaml\n- Alpha\n- Beta\n- Gamma\n```",
    "yaml quoted": "topics:\n  - \"Alpha\"\n  - 'Beta'\n  - \"Gamma\"",
    "broken json": '[\n"Alpha",\n"Beta",\n"Gamma",\n]',
    "twice": "1. Alpha\n2. Beta\n3. ALPHA\n4. Gamma",
    "empty": "1. Alpha\n2.\n3. Beta\n4. Gamma",
    "full-width": "１．Alpha\n２．Beta\n３．Gamma",
    "middle dot": "・Alpha\n・Beta\n・Gamma",
    "circled": "①Alpha\n②Beta\n③Gamma",
    "comma marks": "1、Alpha\n2、Beta\n3、Gamma",
    "full-width brackets": "（1）Alpha\n（2）Beta\n（3）Gamma",
}


@pytest.mark.parametrize("answer", NAMES.values(), ids=NAMES)
def test_names_of_a_list(answer: str):
    assert parse_list(answer, names=True).items == ABC


JAPANESE = {
    "full-width": "１．金利の仕組み\n２．住宅ローン\n３．為替",
    "numbered": "以下に3つ挙げます。\n\n1. 金利の仕組み\n2. 住宅ローン\n3. 為替\n\nほかにも必要でしたらお知らせください。",
    "introduced": "次のとおりです：\n・金利の仕組み\n・住宅ローン\n・為替",
    "one line": "金利の仕組み、住宅ローン、為替",
    "explained": "1. 金利の仕組み：基本\n2. 住宅ローン：借り方\n3. 為替：円とドル",
    "quoted": "1. 「金利の仕組み」\n2. 「住宅ローン」\n3. 「為替」",
    "labels": "質問1：金利の仕組み\n質問2：住宅ローン\n質問3：為替",
    "json": '["金利の仕組み", "住宅ローン", "為替"]',
}


@pytest.mark.parametrize("answer", JAPANESE.values(), ids=JAPANESE)
def test_japanese_names(answer: str):
    assert parse_list(answer, names=True).items == ("金利の仕組み", "住宅ローン", "為替")


TEXTS = {
    "two": ("1. What is A, and why?\n2. How does B: the small one, work?", ("What is A, and why?", "How does B: the small one, work?")),
    "over lines": ("1. Given:\n   x = 1\n   y = 2\n2. Second.", ("Given:\nx = 1\ny = 2", "Second.")),
    "with parts": ("1. Do this:\n   a) one\n   b) two\n\n2. Then that.", ("Do this:\na) one\nb) two", "Then that.")),
    "decimals": ("1. 3.5 is what?\n2. Is 2.5 more?", ("3.5 is what?", "Is 2.5 more?")),
    "plain": ("Why is it so?\nWho says so?", ("Why is it so?", "Who says so?")),
    "japanese": ("1. 金利とは何ですか。\n2. なぜ、変わるのですか。", ("金利とは何ですか。", "なぜ、変わるのですか。")),
    "dialogue": ('1. "Is it on?", he asked.\n2. Say "no".', ('"Is it on?", he asked.', 'Say "no".')),
    "labels": ("Question 1: Why?\nQuestion 2: How?", ("Why?", "How?")),
    "numbers above nine": ("\n".join(f"{i}. Q{i}x" for i in range(1, 13)), tuple(f"Q{i}x" for i in range(1, 13))),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "items"), TEXTS.values(), ids=TEXTS)
def test_texts_of_a_list(answer: str, items: tuple[str, ...]):
    assert parse_list(answer).items == items


@pytest.mark.parametrize(
    "answer",
    ["", "I'm sorry, I can't help with that.", "A. Smith wrote it.", "Alpha, Beta", "[]", "{", "1." * 5000, "[" * 5000, "---"],
)
def test_what_is_no_list_gives_nothing(answer: str):
    assert parse_list(answer).items == ()


def test_an_entry_that_does_not_stand_in_the_answer_is_refused():
    """The guard behind the parser, whose entries are pieces of the answer."""
    listed = _checked(["Tea", "coffee", "milk"], "1. tea\n2. milk")
    assert listed.items == ("Tea", "milk") and listed.refused == 1
    assert listed.dropped() == {"entry not in the answer": 1}


def test_what_is_left_out_is_counted():
    listed = parse_list("1. Tea\n2. tea\n3.\n4. Milk\n5. ***")
    assert listed.items == ("Tea", "Milk")
    assert listed.dropped() == {"listed twice": 1, "empty entry": 2}


WORDS = st.lists(st.sampled_from(["tea", "rate", "金利", "Öl", "x-ray", "Why"]), min_size=1, max_size=5).map(" ".join)
MARKS = st.sampled_from(["{}. ", "{}) ", "- ", "* ", "・", "（{}）", "Item {}: "])


@given(st.lists(WORDS, min_size=2, max_size=12, unique_by=folded), MARKS, st.booleans())
def test_what_is_written_as_a_list_is_read_again(entries: list[str], mark: str, apart: bool):
    lines = [mark.format(number) + entry for number, entry in enumerate(entries, start=1)]
    answer = ("\n\n" if apart else "\n").join(lines)
    assert parse_list(answer).items == tuple(entries)
    assert parse_list(answer, names=True).items == tuple(entries)


@given(st.text(max_size=300))
def test_of_any_text_only_what_stands_in_it(answer: str):
    for names in (True, False):
        listed = parse_list(answer, names=names)
        assert all(folded(item) in folded(answer) and item.strip() for item in listed.items)
        assert len({folded(item) for item in listed.items}) == len(listed.items)
