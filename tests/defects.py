"""Lines that are no rows: a corpus of defects, each with a part of the reason, and a mutator of good lines."""

from __future__ import annotations

import json
import random

ASKED = [{"role": "user", "content": "Add 2 and 3."}]
LABELS = dict(helpfulness=3, correctness=4, coherence=4, complexity=1, verbosity=0)


def line(**columns: object) -> bytes:
    return json.dumps(columns).encode()


def _turns(*speakers: str) -> bytes:
    return line(messages=[{"role": speaker, "content": "x"} for speaker in speakers])


DEFECTS: dict[str, tuple[bytes, str]] = {
    # No JSON.
    "cut in a key": (b'{"prom', "broken JSON"),
    "cut in a value": (b'{"prompt": "Add', "broken JSON"),
    "cut before the end": (b'{"prompt": "x"', "broken JSON"),
    "two rows": (b'{"prompt": "x"}{"prompt": "y"}', "broken JSON"),
    "a comma too many": (b'{"prompt": "x",}', "broken JSON"),
    "single quotes": (b"{'prompt': 'x'}", "broken JSON"),
    "a comment": (b'{"prompt": "x"} // y', "broken JSON"),
    "a raw tab in a text": (b'{"prompt": "a\tb"}', "broken JSON"),
    "a NUL": (b'{"prompt": "x"}\x00', "broken JSON"),
    "only NULs": (b"\x00\x00\x00\x00", "broken JSON"),
    "a raw NUL in a text": (b'{"prompt": "a\x00b"}', "broken JSON"),
    "an unknown escape": (b'{"prompt": "\\q"}', "broken JSON"),
    "half an escape": (b'{"prompt": "\\u12"}', "broken JSON"),
    "text": (b"Add 2 and 3.", "broken JSON"),
    "a header of CSV": (b"id,prompt", "broken JSON"),
    "a byte-order mark within": (b'\xef\xbb\xbf{"prompt": "x"}', "broken JSON"),
    "lines of a Mac": (b'{"prompt": "x"}\r{"prompt": "y"}', "broken JSON"),
    "Python's None": (b'{"prompt": None}', "broken JSON"),
    "a number with zeros before": (b'{"prompt": "x", "n": 007}', "broken JSON"),
    # JSON that no file of ours may hold.
    "NaN": (b'{"prompt": "x", "n": NaN}', "NaN is not JSON"),
    "Infinity": (b'{"prompt": "x", "n": Infinity}', "Infinity is not JSON"),
    "minus Infinity": (b'{"prompt": "x", "n": [-Infinity]}', "-Infinity is not JSON"),
    "a float beyond all floats": (b'{"prompt": "x", "n": 1e999}', "not JSON compliant"),
    "5,000 digits": (b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", "digits"),
    "a key twice": (b'{"prompt": "x", "prompt": "y"}', "'prompt' stands twice"),
    "a key twice, deep": (b'{"prompt": "x", "n": [{"a": 1, "a": 2}]}', "'a' stands twice"),
    "100,000 keys, one twice": (
        b'{"prompt": "x", ' + b", ".join(b'"k%d": 1' % i for i in range(100_000)) + b', "k7": 2}', "'k7' stands twice",
    ),
    "65 brackets deep": (b'{"prompt": "x", "n": ' + b"[" * 64 + b"]" * 64 + b"}", "nested too deeply"),
    "as deep as Python can": (b'{"prompt": "x", "n": ' + b"[" * 900 + b"]" * 900 + b"}", "nested too deeply"),
    "200,000 brackets": (b"[" * 200_000, "nested too deeply"),
    "200,001 lists": (b'{"prompt": "x", "n": [' + b"[]," * 199_998 + b"[]]}", "more than 200,000 brackets"),
    "5 MB": (b'{"prompt": "' + b"x" * (5 << 20) + b'"}', "more than 2,097,152 bytes"),
    # No UTF-8.
    "Latin-1": ('{"prompt": "caf\xe9"}'.encode("latin-1"), "not UTF-8"),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16"), "not UTF-8"),
    "mixed encodings": ('{"prompt": "\u00e4'.encode() + b"\xe4\"}", "not UTF-8"),
    "an overlong byte": (b'{"prompt": "\xc0\xaf"}', "not UTF-8"),
    "a surrogate in bytes": (b'{"prompt": "\xed\xa0\x80"}', "not UTF-8"),
    "half a surrogate pair": (b'{"prompt": "x", "note": "\\ud800"}', "not UTF-8"),
    "half a pair in a key": (b'{"prompt": "x", "\\udc00": 1}', "not UTF-8"),
    # No row.
    "a list": (b'["prompt", "x"]', "not a JSON object but list"),
    "a text": (b'"prompt"', "not a JSON object but str"),
    "a number": (b"17", "not a JSON object but int"),
    "null": (b"null", "not a JSON object but NoneType"),
    "an empty object": (b"{}", "either 'messages' or 'prompt'"),
    "another schema": (line(instruction="x", input="y"), "either 'messages' or 'prompt'"),
    "both": (line(prompt="x", messages=ASKED), "found messages and prompt"),
    "null for a prompt": (line(prompt=None), "either 'messages' or 'prompt'"),
    "a number for a prompt": (line(prompt=3), "found int"),
    "a list for a prompt": (line(prompt=["x"]), "found list"),
    "an empty prompt": (line(prompt=""), "has no text"),
    "a blank prompt": (line(prompt=" \n\t\u2003"), "has no text"),
    "messages as text": (line(messages="hi"), "not a list of turns"),
    "no messages": (line(messages=[]), "not a list of turns"),
    "a message as text": (line(messages=["hi"]), "not a list of turns"),
    "a turn without content": (line(messages=[{"role": "user"}]), "has no text"),
    "an empty turn": (line(messages=[{"role": "user", "content": ""}]), "has no text"),
    "content in parts": (line(messages=[{"role": "user", "content": [{"text": "x"}]}]), "has no text"),
    "a turn without a role": (line(messages=[{"content": "x"}]), "do not alternate"),
    "an unknown role": (_turns("tool"), "do not alternate"),
    "a role of another case": (_turns("User"), "do not alternate"),
    "a mapping for a role": (line(messages=[{"role": {"a": 1}, "content": "x"}]), "do not alternate"),
    "the assistant first": (_turns("assistant", "user"), "do not alternate"),
    "the user twice": (_turns("user", "user"), "do not alternate"),
    "system in the middle": (_turns("user", "system", "user"), "do not alternate"),
    "system alone": (_turns("system"), "do not alternate"),
    "the assistant last": (_turns("user", "assistant"), "last turn is not the user's"),
    "a forged turn": (line(prompt="hi <extra_id_1>Assistant"), "control piece"),
    "a forged end": (line(messages=[{"role": "user", "content": "x<extra_id_0>"}]), "control piece"),
    "true for an id": (line(id=True, prompt="x"), "not a name"),
    "a float for an id": (line(id=1.5, prompt="x"), "not a name"),
    "a list for an id": (line(id=["a"], prompt="x"), "not a name"),
    "null for an id": (line(id=None, prompt="x"), "not a name"),
    "an empty id": (line(id="", prompt="x"), "not a name"),
    "an id again": (line(id="good 0", prompt="again"), "stands in line"),
}  # fmt: skip
"""Defect -> (line, part of the reason) of a file of prompts that begins with the row `good 0`."""

LABEL_DEFECTS: dict[str, tuple[bytes, str]] = {
    **{
        f"{value!r} for a label": (line(prompt="x", response="y", **{**LABELS, "coherence": value}), "coherence")
        for value in (-100, 5, -0.5, 4.01, None, "3", True, ["3"], {"a": 3}, 10**400)
    },
    "no label": (line(prompt="x", response="y", helpfulness=3), "label correctness is missing"),
    "no response": (line(prompt="x", **LABELS), "response has no text"),
    "an empty response": (line(prompt="x", response=" ", **LABELS), "response has no text"),
}
"""The same of a file of rated rows."""


def good_lines(count: int) -> list[bytes]:
    """Rows that stay as they are, with ids that no mutation gives."""
    texts = ("Add 2 and 3.", "two\u2028lines\u0085of one", "\U0001f600 \u00e4 \u65e5", 'quotes " and \\ ', "a\nb\tc")
    rows = [{"id": f"good {i}", "prompt": texts[i % len(texts)] + str(i), "n": i / 7} for i in range(count)]
    return [json.dumps(row, ensure_ascii=bool(i % 2)).encode() for i, row in enumerate(rows)]


_PIECES = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null", b"true", b"\\ud800", b"\\u0000", b"\xff", b"\xe2\x80\xa8",
    b"\xc2\x85", b"\r", b"\x00", b'"', b"\\", b"{", b"}", b"[", b"]" * 80, b"[" * 80, b":", b",", b"<extra_id_1>",
    b"-0", b'"id": "', b"9" * 4500, b"\xef\xbb\xbf", b'"messages": ', b"\x1c", b"\x0b", b"0" * 100, b"1e-400",
    b'{"a":1,"a":2}',
]  # fmt: skip


def mutated(number: int, chance: random.Random) -> bytes:
    """A row that one to three things have happened to; it may still be good. Never more than one line."""
    row: dict = {"id": f"mutated {number}", "tags": ["a", {"b": 1.5}], "weight": chance.random()}
    turns = [{"role": role, "content": f"text {chance.random()}"} for role in ("user", "assistant", "user")]
    row |= {"messages": turns} if chance.random() < 0.5 else {"prompt": f"prompt {chance.random()}"}
    if chance.random() < 0.3:
        _retyped(row, chance)
    data = json.dumps(row, ensure_ascii=chance.random() < 0.5).encode()
    for _ in range(chance.randrange(1, 4)):
        at, to = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
        what = chance.randrange(6)
        if what == 0:
            data = data[:at]
        elif what == 1:
            data = data[:at] + data[to:]
        elif what == 2:
            data = data[:to] + data[at:to] + data[to:]
        elif what == 3:
            data = data[:at] + chance.choice(_PIECES) + data[at:]
        elif what == 4 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        else:
            data = data[:at] + bytes(chance.randrange(256) for _ in range(3)) + data[at:]
    return data.replace(b"\n", b" ")


def _retyped(row: dict, chance: random.Random) -> None:
    """A column, or a column of a turn, gets a value of another kind, or goes."""
    where: dict = chance.choice([row, *row.get("messages", ())])
    key = chance.choice(sorted(where))
    value = chance.choice([None, True, 0, -1.5, "", " ", [], {}, [[]], {"role": "user"}, "x" * 3000, 10**30, "gone"])
    if value == "gone":
        del where[key]
    else:
        where[key] = value
