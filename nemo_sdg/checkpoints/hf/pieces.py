"""What a SentencePiece model says about itself: its pieces and how it prepares a text. No torch.

The protobuf classes that sentencepiece itself brings refuse many protobuf versions, so the few fields that are
needed are declared here, in a pool of their own.
Source of the fields: google/sentencepiece: src/sentencepiece_model.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

UNIGRAM, BPE, CHAR = 1, 2, 4
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

_TEXT, _BYTES, _NUMBER, _FLAG, _FLOAT, _MESSAGE = 9, 12, 5, 8, 2, 11  # FieldDescriptorProto.Type
_MESSAGES = {
    "Piece": [("piece", 1, _TEXT, ""), ("score", 2, _FLOAT, "0"), ("type", 3, _NUMBER, "1")],
    "Trainer": [
        ("model_type", 3, _NUMBER, "1"), ("suffix", 24, _FLAG, "false"), ("byte_fallback", 35, _FLAG, "false"),
        ("unk_id", 40, _NUMBER, "0"),
    ],
    "Normalizer": [
        ("charsmap", 2, _BYTES, ""), ("dummy_prefix", 3, _FLAG, "true"), ("strip", 4, _FLAG, "true"),
        ("escape", 5, _FLAG, "true"),
    ],
    "Model": [("pieces", 1, "Piece", ""), ("trainer", 2, "Trainer", ""), ("normalizer", 3, "Normalizer", "")],
}  # fmt: skip


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece model as data."""

    texts: tuple[str, ...]
    """By token id."""
    scores: tuple[float, ...]
    types: tuple[int, ...]
    kind: int
    """UNIGRAM, BPE, CHAR, or another number."""
    byte_fallback: bool
    unk_id: int
    charsmap: bytes
    """The compiled normalisation rules; empty for none."""
    dummy_prefix: bool
    """A space is put before the text."""
    strip: bool
    """Spaces at the ends go, and several become one."""
    escape: bool
    """Spaces are written as U+2581."""
    suffix: bool
    """Words are marked at their end instead of their beginning."""

    def of_type(self, *types: int) -> list[tuple[int, str]]:
        """(token id, text) of the pieces of these types."""
        return [(index, text) for index, text in enumerate(self.texts) if self.types[index] in types]


def read_pieces(model: bytes) -> Pieces:
    """Parse the bytes of a SentencePiece model, one that `models.tokenizer.Tokenizer` has opened."""
    data = _message_class().FromString(model)
    return Pieces(
        texts=tuple(piece.piece for piece in data.pieces),
        scores=tuple(piece.score for piece in data.pieces),
        types=tuple(piece.type for piece in data.pieces),
        kind=data.trainer.model_type,
        byte_fallback=data.trainer.byte_fallback,
        unk_id=data.trainer.unk_id,
        charsmap=data.normalizer.charsmap,
        dummy_prefix=data.normalizer.dummy_prefix,
        strip=data.normalizer.strip,
        escape=data.normalizer.escape,
        suffix=data.trainer.suffix,
    )


@lru_cache(maxsize=1)
def _message_class():  # noqa: ANN202  (made at run time)
    file = descriptor_pb2.FileDescriptorProto(name="nemo_sdg_pieces.proto", package="nemo_sdg_pieces", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, default in fields:
            nested = isinstance(kind, str)
            message.field.add(
                name=field, number=number, type=_MESSAGE if nested else kind, label=3 if field == "pieces" else 1,
                type_name=f".nemo_sdg_pieces.{kind}" if nested else None, default_value=default or None,
            )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nemo_sdg_pieces.Model"))
