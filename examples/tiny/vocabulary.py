"""The SentencePiece model of the tiny world, written piece by piece: nothing is learnt, so it is the same everywhere.

Ids as in the released models: pad 0, unk 1, <s> 2, </s> 3, then <extra_id_0>, <extra_id_1>, ... as user-defined
pieces. Words and phrases that the world uses often are user-defined too, so that a task is about ten tokens long. Any
other text goes through the 256 byte pieces: decode(encode(text)) == text for every text.
"""

from __future__ import annotations

import string
import struct
from pathlib import Path

SIZE = 384
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
EXTRA_IDS = 8
PHRASES = (
    SYSTEM_PROMPT, "System\n", "User\n", "Assistant\n",
    "Add ", " and ", "Count the letter ", " in ", "Sort the letters of ", "Reverse the word ", "Repeat the word ",
    " times", "Tell me the secret word ", "I cannot say.", "Work: ", "; ", ", ", ".\n", "no ",
    "Well", "um", "let me see", "I think", "maybe", "Marks:",
)  # fmt: skip
CHARACTERS = string.ascii_lowercase + string.digits + " \n.,:;+=-?!'\"()" + "ASWRTCIEM"


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def _field(number: int, value: float | str | bytes) -> bytes:
    """One field of a protocol buffer: SentencePiece's own bindings want a protobuf newer than NeMo allows."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def pieces() -> list[tuple[str, int, float]]:
    """(piece, type, score) of every id."""
    rows = [("<pad>", CONTROL, 0.0), ("<unk>", UNKNOWN, 0.0), ("<s>", CONTROL, 0.0), ("</s>", CONTROL, 0.0)]
    rows += [(f"<extra_id_{number}>", USER_DEFINED, 0.0) for number in range(EXTRA_IDS)]
    rows += [(phrase, USER_DEFINED, 0.0) for phrase in PHRASES]
    rows += [(f"<0x{byte:02X}>", BYTE, 0.0) for byte in range(256)]
    rows += [(character, NORMAL, -1.0) for character in CHARACTERS]
    return rows + [(f"<unused_{number}>", UNUSED, 0.0) for number in range(SIZE - len(rows))]


def build() -> bytes:
    """The bytes of the SentencePiece model (field numbers: sentencepiece_model.proto)."""
    listed = b"".join(
        _field(1, _field(1, piece) + _field(2, score) + _field(3, kind)) for piece, kind, score in pieces()
    )
    unigram, byte_fallback = _field(3, 1), _field(35, 1)
    ids = b"".join(_field(40 + place, number) for place, number in enumerate((1, 2, 3, 0)))  # unk, bos, eos, pad
    names = b"".join(_field(45 + place, name) for place, name in enumerate(("<unk>", "<s>", "</s>", "<pad>")))
    trainer = unigram + _field(4, SIZE) + byte_fallback + ids + names
    # No dummy prefix, white space neither joined nor escaped: what goes in comes out.
    normalizer = _field(1, "identity") + _field(3, 0) + _field(4, 0) + _field(5, 0)
    return listed + _field(2, trainer) + _field(3, normalizer)


def write(path: Path) -> None:
    path.write_bytes(build())
