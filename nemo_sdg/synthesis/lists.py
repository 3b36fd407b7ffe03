"""A list out of the first answer, without a second call to a model: numbered, bulleted, plain lines, JSON, YAML.

NVIDIA's pipeline asks a model to turn each answer into YAML. Here a program reads it. The rule that guards it is
the same (NeMo-Curator, nemo_curator/synthetic/nemotron.py): an entry that does not stand in the answer is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Iterable

from nemo_sdg.synthesis.answers import unquoted
from nemo_sdg.synthesis.text import folded

_MARKS = (
    ("number", re.compile(r"(?:\*\*)?[(（]?[0-9０-９]{1,3}(?:[.．](?![0-9０-９])|[)）、:：]|\.\))(?:\*\*)?[ \t　]*")),
    (
        "label",  # Question 1: 質問1：
        re.compile(
            r"(?:\*\*)?(?:[A-Za-z]{1,12} ?|第|問題?|質問|課題|例)[0-9０-９]{1,3}問?(?:\*\*)?[.:：．、)](?:\*\*)?[ \t　]*"
        ),
    ),
    ("circled", re.compile(r"[①-⑳][ \t　]*")),
    ("letter", re.compile(r"[(（]?[a-zA-Z][.)）][ \t]+")),
    ("bullet", re.compile(r"(?:[-*+–—‣▪◦●][ \t]+|[・•●○◆■▪][ \t　]*)")),
)
_SEPARATORS = re.compile(r"[、，;；]|,\s")
_HEAD = re.compile(r"^(?:\*\*)?(?P<head>[^:：\n]{1,60}?)(?:\*\*)?(?:[:：]\s*(?:\*\*)?\s*|\s[-–—]\s)\S")
_FENCE = re.compile(r"```[\w-]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Listed:
    """The entries of an answer in their order, and what was left out."""

    items: tuple[str, ...]
    refused: int = 0
    """Entries whose text does not stand in the answer."""
    duplicates: int = 0
    empty: int = 0

    def dropped(self) -> dict[str, int]:
        """Entries left out, by reason."""
        counts = {"entry not in the answer": self.refused, "listed twice": self.duplicates, "empty entry": self.empty}
        return {reason: count for reason, count in counts.items() if count}


def parse_list(answer: str, *, names: bool = False) -> Listed:
    """The entries of the list in an answer; none where it holds no list.

    Args:
        names: entries are names (topics, keywords): one line each, explanations after a colon cut off, and a single
            line with separators is a list too. Otherwise they are texts, which may go over several lines.
    """
    stands, entries = answer, _structured(answer)
    if entries is None:
        lines = _fenced(answer).splitlines()
        entries = _marked(lines, names) or _plain(lines, names)
    else:
        stands = "\n".join(entries)  # in the answer they stand as JSON writes them, with escapes
    cleaned = [_clean(entry) for entry in entries]
    if names:
        cleaned = _headed(cleaned)
    return _checked(cleaned, stands)


def _checked(entries: Iterable[str], answer: str) -> Listed:
    stands, seen = folded(answer), set()
    items: list[str] = []
    refused = duplicates = empty = 0
    for entry in entries:
        key = folded(entry)
        if not any(c.isalnum() for c in entry):
            empty += 1
        elif key not in stands:
            refused += 1
        elif key in seen:
            duplicates += 1
        else:
            seen.add(key)
            items.append(entry)
    return Listed(tuple(items), refused, duplicates, empty)


def _fenced(answer: str) -> str:
    """What stands in the only fence of an answer; else the answer."""
    fences = _FENCE.findall(answer)
    return fences[0] if len(fences) == 1 and len(fences[0].strip().splitlines()) > 1 else answer


def _structured(answer: str) -> list[str] | None:
    """The entries of a JSON list, or of the only list in a JSON object; None where there is none."""
    for opening, closing in ("[]", "{}"):
        start, end = answer.find(opening), answer.rfind(closing)
        if start < 0 or end < start:
            continue
        try:
            value = json.loads(answer[start : end + 1])
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            lists = [below for below in value.values() if isinstance(below, list)]
            value = lists[0] if len(lists) == 1 else None
        if isinstance(value, list) and len(value) > 1:
            texts = [_text_of(entry) for entry in value]
            return [text for text in texts if text is not None]
    return None


def _text_of(entry: Any) -> str | None:
    """A text, or the longest text of an object such as {"id": 1, "question": "..."}."""
    if isinstance(entry, dict):
        return max((text for text in entry.values() if isinstance(text, str)), key=len, default=None)
    return entry if isinstance(entry, str) else None


def _mark(line: str) -> tuple[str, int, str] | None:
    """(kind of mark, indent, the rest) of a line that begins with a list mark."""
    bare = line.lstrip(" \t　")
    for kind, mark in _MARKS:
        found = mark.match(bare)
        if found and (kind != "bullet" or not bare.startswith("**")):
            return kind, len(line) - len(bare), bare[found.end() :]
    return None


def _marked(lines: list[str], names: bool) -> list[str]:
    """Lines with the mark of the first one, at its indent. A text goes on until a blank line, or while it is indented."""
    marks = [_mark(line) for line in lines]
    first = next((mark for mark in marks if mark), None)
    if first is None:
        return []
    kind, indent, _ = first
    entries: list[list[str]] = []
    open_entry = False
    for line, mark in zip(lines, marks):
        if mark and mark[0] == kind and abs(mark[1] - indent) <= 1:
            entries.append([mark[2].strip()])
            open_entry = True
        elif not line.strip() or (mark is None and line[:1].strip() and names):
            open_entry = False
        elif entries and not names and (open_entry or line[:1] in " \t　"):
            entries[-1].append(line.strip())
    if len(entries) == 1 and kind in ("label", "letter"):  # one line that only looks like it: "A. Smith said"
        return []
    return ["\n".join(entry).strip() for entry in entries]


def _plain(lines: list[str], names: bool) -> list[str]:
    """Lines, or paragraphs, without any mark. An introduction that ends with a colon is none of them."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if not line.strip():
            blocks.append([])
        elif not line.rstrip("* ").endswith((":", "：")):
            blocks[-1].append(line.strip())
    blocks = [block for block in blocks if block]
    longest = max(blocks, key=len, default=[])
    if len(longest) > 1:
        return longest
    entries = [block[0] for block in blocks]
    if len(entries) == 1 and names:
        line = entries[0].rpartition(":")[2] if ": " in entries[0] else entries[0].rpartition("：")[2]
        entries = [re.sub(r"^(?:and|or)\s+", "", part.strip()) for part in _SEPARATORS.split(line)]
        entries = [part.rstrip(".。") for part in entries]
    return entries if len(entries) > 1 else []


def _clean(entry: str) -> str:
    """Without commas of a broken list, quotes and bold marks around the whole."""
    text = entry.strip().rstrip(",，").strip()
    return unquoted(text)


def _headed(entries: list[str]) -> list[str]:
    """Names without their explanations, where every entry has one."""
    heads = [_HEAD.match(entry) for entry in entries]
    if len(entries) > 1 and all(heads):
        entries = [unquoted(found["head"].strip()) for found in heads]
    return [entry.removeprefix("**").removesuffix("**").strip().rstrip(".。") for entry in entries]
