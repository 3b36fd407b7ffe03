"""A SentencePiece model as `tokenizer.json`, for the fast tokenizers of transformers: it gives our token ids.

How the two are made one:

* User-defined pieces (`<extra_id_*>`) are added tokens, found in the prepared text as SentencePiece finds them;
  nothing around them is stripped.
* Control pieces (`<s>`, `</s>`) are not: SentencePiece never finds them in a text, so a user who types them gets
  letters. The end of a turn, `<extra_id_1>`, is the tokenizer's `eos_token` and `pad_token`: TensorRT-LLM stops at
  the `eos_token` alone, and whoever decodes with `skip_special_tokens` gets the answer without it.
* There is no pre-tokenizer and nothing is added: no BOS, no EOS.

Two differences are known. Of a text that is nothing but one marker, a model with a dummy prefix makes two tokens
and this tokenizer one. Where two ways to cut a text tie in a unigram model (2|00|0 and 2|0|00), SentencePiece lets
the rounding of fp32 decide and the library, in fp64, takes the first. Source: google/sentencepiece: src/normalizer.cc, src/bpe_model.cc, src/unigram_model.cc.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_sdg.checkpoints.description import TOKENIZER
from nemo_sdg.checkpoints.hf import pieces as kinds
from nemo_sdg.checkpoints.hf.chat import chat_template
from nemo_sdg.checkpoints.hf.pieces import NORMAL, USER_DEFINED, Pieces, read_pieces
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.templates import TURN, instruct_prompt, reward_prompt, sft_text
from nemo_sdg.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_SPACE = "\u2581"
_MARKER = re.compile(r"<extra_id_\d+>")
_NEVER_FOUND = (kinds.CONTROL, kinds.BYTE, kinds.UNKNOWN)
"""Types of pieces that SentencePiece never finds in a text."""


def write_tokenizer(making: Path, model: bytes, *, reward: bool, seq_length: int) -> None:
    """All that transformers, vLLM and TensorRT-LLM look for, and the SentencePiece file itself.

    Raises:
        CheckpointError: the SentencePiece model is of a kind that a tokenizer.json cannot express.
    """
    ours = Tokenizer(model)
    pieces = read_pieces(model)
    fast = fast_tokenizer(pieces)
    check_same_ids(fast, ours, pieces)
    template = chat_template(reward=reward)
    (making / TOKENIZER).write_bytes(model)
    (making / "tokenizer.json").write_text(fast.to_str(pretty=False), encoding="utf-8")
    (making / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = _config(pieces, template, reward=reward, seq_length=seq_length)
    (making / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_export(model: bytes) -> None:
    """Raises CheckpointError if a fast tokenizer cannot give the ids of this SentencePiece model."""
    pieces = read_pieces(model)
    check_same_ids(fast_tokenizer(pieces), Tokenizer(model), pieces)


def fast_tokenizer(pieces: Pieces) -> tokenizers.Tokenizer:
    """The tokenizer of the `tokenizers` library that does what a SentencePiece model does."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    model, pattern = _model(pieces)
    fast = tokenizers.Tokenizer(model)
    if pattern:
        fast.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), "merged_with_previous")
    fast.normalizer = _normalizer(pieces)
    parts = [decoders.Replace(_SPACE, " ")] if pieces.escape else []
    parts += [decoders.ByteFallback(), decoders.Fuse()]
    if pieces.dummy_prefix or pieces.strip:
        parts.append(decoders.Strip(" ", 1, 0))
    fast.decoder = decoders.Sequence(parts)
    fast.add_tokens(
        [
            tokenizers.AddedToken(text, normalized=True, special=_MARKER.fullmatch(text) is not None)
            for _, text in pieces.of_type(USER_DEFINED)
        ]
    )
    return fast


def _model(pieces: Pieces) -> tuple[Any, str]:
    """The model, and a pattern after whose matches the text is cut before the model sees it."""
    from tokenizers import models

    unknown = pieces.texts[pieces.unk_id]
    if pieces.kind == kinds.UNIGRAM:
        scored, pattern = _unigram(pieces)
        return models.Unigram(scored, unk_id=pieces.unk_id, byte_fallback=pieces.byte_fallback), pattern
    if pieces.kind not in (kinds.BPE, kinds.CHAR) or pieces.suffix:
        raise CheckpointError(
            "a tokenizer.json cannot express this SentencePiece model", where="tokenizer",
            found="words marked at their end" if pieces.suffix else f"model type {pieces.kind}",
            expected="a BPE, unigram or character model",
        )  # fmt: skip
    vocabulary = {text: index for index, text in enumerate(pieces.texts)}
    merges = _merges(pieces) if pieces.kind == kinds.BPE else []
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=pieces.byte_fallback), ""


def _merges(pieces: Pieces) -> list[tuple[str, str]]:
    """All ways to make a piece of two others, the best piece first.

    SentencePiece joins whatever neighbours make the best piece, the leftmost of equals; of the ways to make one
    piece, the one with the longer left part stands further left.
    """
    scores = {text: pieces.scores[index] for index, text in pieces.of_type(NORMAL)}
    ways = [
        (-score, -cut, text)
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [(text[:-cut], text[-cut:]) for _, cut, text in sorted(ways)]


def _unigram(pieces: Pieces) -> tuple[list[tuple[str, float]], str]:
    """Pieces with scores, and a pattern after whose matches the text is cut.

    SentencePiece never finds control and byte pieces in a text, but the library would. So they are cut in two where
    no ordinary piece could reach over the cut; where there is no such place, their letters one by one score better.
    """
    pairs = {text[at : at + 2] for _, text in pieces.of_type(NORMAL) for at in range(len(text) - 1)}
    worst = min((pieces.scores[index] for index, _ in pieces.of_type(NORMAL)), default=0.0) - 1
    scores = list(pieces.scores)
    cuts: dict[str, list[str]] = {}
    for index, text in pieces.of_type(*_NEVER_FOUND):
        for cut in range(1, len(text)):
            if text[cut - 1 : cut + 1] not in pairs:
                cuts.setdefault(text[:cut], []).append(re.escape(text[cut:]))
                break
        else:
            scores[index] = len(text) * worst
    pattern = "|".join(f"{re.escape(before)}(?={'|'.join(after)})" for before, after in cuts.items())
    return list(zip(pieces.texts, scores)), pattern


def _normalizer(pieces: Pieces) -> Any:
    from tokenizers import Regex, normalizers

    steps = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    if pieces.dummy_prefix:
        # The library prepares the added tokens themselves in the same way, and they must stay as they are.
        names = "|".join(re.escape(text) for _, text in pieces.of_type(USER_DEFINED))
        steps.append(normalizers.Replace(Regex(rf"\A(?!(?:{names})?\z)"), " "))
    if pieces.strip:
        ends = r" +\z" if pieces.dummy_prefix else r"\A +| +\z"
        steps += [normalizers.Replace(Regex(ends), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if pieces.escape:
        steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps)


def _config(pieces: Pieces, template: str, *, reward: bool, seq_length: int) -> dict[str, Any]:
    added = {
        str(index): {
            "content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False,
            "special": _MARKER.fullmatch(text) is not None,
        }
        for index, text in pieces.of_type(USER_DEFINED)
    }  # fmt: skip
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN,
        "pad_token": TURN,
        # The reward is read at the last token; a language model goes on after it.
        "padding_side": "right" if reward else "left",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": seq_length,
        "chat_template": template,
    }


def check_same_ids(fast: tokenizers.Tokenizer, ours: Tokenizer, pieces: Pieces) -> None:
    """Raises CheckpointError, naming the text, unless both tokenizers give the same ids for all of `_texts`."""
    for text in _texts(pieces):
        expected, found = ours.encode(text), fast.encode(text, add_special_tokens=False).ids
        if found != expected and not _tie(pieces, expected, found):
            raise CheckpointError(
                "the tokenizer.json would not give the ids of the SentencePiece model", where="tokenizer",
                found=f"{str(found)[:120]} for {text!r:.120}", expected=str(expected)[:120],
                way_out="report it with the tokenizer; without an export, nemo_sdg runs this model as it is",
            )  # fmt: skip


def _tie(pieces: Pieces, ids: list[int], others: list[int]) -> bool:
    """Whether two ways to cut a text score the same in a unigram model, up to the rounding of fp32."""
    first, second = (sum(pieces.scores[index] for index in way) for way in (ids, others))
    return pieces.kind == kinds.UNIGRAM and abs(first - second) <= 1e-6 * (1 + abs(first))


def _texts(pieces: Pieces) -> list[str]:
    """Texts in which tokenizers differ: spaces, line ends, scripts, markers beside text, pieces typed out."""
    plain = [
        "", "a", "Hello world.", " leading", "trailing ", "two  spaces", "   three before\n\n\nthree lines\n", "\ttab\t\ttabs",
        "A sum: 12 + 3 = 15, 1,000.50 or 3.14e-10", "def f(x):\n    return x ** 2  # a comment\n",
        "Grüße, café, naïve; Ελληνικά, русский, עברית, العربية, हिन्दी", "日本語と中文，한국어。", "👩‍👩‍👧 🇨🇭 👍🏽 emoji", "e\u0301 \ufb01 \uff21 \u2460",
        "a\u00a0b\u200bc\u3000d\u2028e\ufeff", "\r\nwindows\r\n", "▁ U+2581 ▁▁", "aaaaaaaaaaaaa abababababab", "https://example.com/a_b?c=d&e=%20",
        "".join(chr(code) for code in range(32, 127)),
    ]  # fmt: skip
    typed = [text for _, text in pieces.of_type(*_NEVER_FOUND)][:8]
    words = [text.replace(_SPACE, " ") for _, text in pieces.of_type(NORMAL)]
    words = words[:: max(1, len(words) // 2000)]
    texts = plain + typed + [" ".join(words[start : start + 20]) for start in range(0, len(words), 20)]
    texts += ["".join(words[start : start + 20]) for start in range(0, len(words), 20)]
    markers = [text for _, text in pieces.of_type(USER_DEFINED)][:8]
    texts += [
        f"{before}{marker}{after}" for marker in markers for before in ("a", "a ", "\n") for after in ("b", " b", "\n")
    ]
    texts += ["".join(markers) + "x"]
    for first, second in zip(plain[1:], plain[2:]):
        asked = [{"role": "system", "content": first}, {"role": "user", "content": second}]
        answered = [*asked, {"role": "assistant", "content": first}]
        texts += [instruct_prompt(asked), sft_text(answered)[0], reward_prompt(answered)]
        texts += [instruct_prompt([*answered, {"role": "user", "content": first}])]
    return texts
