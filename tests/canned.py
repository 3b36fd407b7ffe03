"""Scored responses as the score stage leaves them, without a model: varied texts in English and Japanese, the same ones
for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import planted

from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.quality import Context, Drop, Keep
from nemo_sdg.records import Scored, shortest_float32

RULES = {
    "minimum": {"helpfulness": 1.0}, "maximum": {"verbosity": 3.99}, "percentile": 5.0, "length_free": True,
    "near_duplicates": 0.8, "per_prompt": 3, "balance": {"topic": 0.3, "kind": 0.9}, "pii": "redact",
    "minimum_scalar": 0.1,
}  # fmt: skip
"""Every rule of selection that needs no file, each with something to do in these rows."""
SAMPLES = 4
"""Responses to a prompt."""
_WORDS = 20_000
_PROVENANCE = {
    "policy": "0f1e2d3c4b5a6978", "reward": "8796a5b4c3d2e1f0", "template": "1234567890abcdef", "seed": 0, "round": 0,
}  # fmt: skip


class _Language:
    """Words by Zipf's law: rank r is 1/r as frequent as the first. One in fifty is a number."""

    def __init__(self, name: str, rng: np.random.Generator) -> None:
        source, made = random.Random(f"words of {name}"), {}
        while len(made) < _WORDS:
            syllables = source.choices(planted.SYLLABLES, k=source.choice((1, 2, 3, 3, 4)))
            made["".join(syllables) if name == "en" else planted.words(source, name, 1)[0]] = None
            if len(made) % 50 == 0:
                form = source.choice(("{0}", "{1},{2}00", "{1}.{2}", "{2}"))
                made[form.format(source.randrange(1900, 2100), source.randrange(1, 100), source.randrange(1, 10))] = None
        self._words = np.array(list(made), object)
        self._share = np.cumsum(1 / np.arange(1, len(self._words) + 1))
        self.between, self.stop = (" ", ". ") if name == "en" else ("", "。")
        self._rng = rng

    def words(self, count: int) -> list[str]:
        drawn = self._rng.random(count) * self._share[-1]
        return self._words[np.searchsorted(self._share, drawn)].tolist()

    def text(self, words: list[str]) -> str:
        """Sentences of 14 words, paragraphs of eight sentences."""
        said = [self.between.join(words[at : at + 14]).capitalize() for at in range(0, len(words), 14)]
        return "\n\n".join((self.stop.join(said[at : at + 8]) + self.stop).strip() for at in range(0, len(said), 8))


def rows(count: int, size: int = 4096, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of about `size` bytes, four to a prompt, every fourth prompt in Japanese.

    One row in ten is nearly the same as the one before it, one in fifty has an address and a phone number.
    """
    rng = np.random.default_rng(seed)
    spoken = {name: _Language(name, rng) for name in planted.LANGUAGES}
    lengths = {name: max(int((size - 540) / bytes), 8) for name, bytes in (("en", 6.5), ("ja", 7.55))}
    before: list[str] = []
    for number in range(count):
        prompt, sample = divmod(number, SAMPLES)
        name = "ja" if prompt % 4 == 3 else "en"
        language = spoken[name]
        if sample == 0:
            asked = f"{prompt}: {language.text(language.words(20))}"
        words = language.words(lengths[name])
        if number % 10 == 9:
            words = before.copy()
            for place in rng.integers(len(words), size=2 if sample else 0):
                words[place] = language.words(1)[0]
        before = words
        response = language.text(words)
        if number % 50 == 0:
            response += f" Write to jane{number}@example.com or call (212) 555-{number % 10000:04}."
        scores = map(shortest_float32, (rng.random(len(ATTRIBUTES)) * 4).astype(np.float32).tolist())
        yield {
            "id": f"p{prompt}#{sample}", "prompt_id": f"p{prompt}", "sample": sample,
            "messages": [{"role": "user", "content": asked}], "response": response, "response_token_ids": [],
            "finish_reason": "stop", "provenance": _PROVENANCE, "topic": f"t{prompt % 7}", "kind": f"k{prompt % 2}",
            "scores": dict(zip(ATTRIBUTES, scores)),
        }  # fmt: skip


def own_rule(row: Scored, context: Context) -> Keep | Drop:
    """A rule as a researcher writes one."""
    return Drop("a word of mine") if row.response.startswith("Zzz") else Keep()


def evaluation_files(folder: Path) -> dict[str, Any]:
    """The settings of the rules that need a file, and the files: 2,000 texts that must not leak, 2,000 of the user."""
    rng = random.Random(1)
    for name in ("held", "own"):
        texts = (planted.text(rng, planted.LANGUAGES[number % 2], 60) for number in range(2000))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return {"decontaminate": [f"{folder}/held.jsonl"], "likeness": f"{folder}/own.jsonl", "maximum_copies": 0.5}
