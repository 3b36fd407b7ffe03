"""The SentencePiece tokenizer of the released folders.

`<extra_id_*>` are user-defined pieces, matched inside ordinary encoding: a whole prompt is one string.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import sentencepiece
from sentencepiece.sentencepiece_pb2 import SentencePieceText

from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.templates import LABEL, SYSTEM, TURN


class Tokenizer:
    """Text to token ids and back, without BOS and EOS."""

    def __init__(self, model: bytes | Path | str, where: object = "tokenizer") -> None:
        """From the bytes of a SentencePiece model, or from its file. Raises CheckpointError if it is none."""
        if not isinstance(model, bytes):
            where = model
        path = where
        try:
            if not isinstance(model, bytes):
                model = Path(model).read_bytes()
            if not model:
                raise ValueError("an empty file")  # of which sentencepiece would make an empty tokenizer
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # sentencepiece raises RuntimeError, OSError or TypeError by what is broken
            raise CheckpointError(
                "the tokenizer cannot be read", where=path, found=str(error)[:120], expected="a SentencePiece model",
                way_out="give the tokenizer.model of the released checkpoint",
            ) from error  # fmt: skip
        for marker in (SYSTEM, TURN, LABEL):
            if self._pieces.piece_to_id(marker) == self._pieces.unk_id():
                raise CheckpointError(
                    "the tokenizer lacks a piece of the prompt format", where=path, found=f"no {marker}",
                    expected="Nemotron's tokenizer", way_out="use the tokenizer of the released checkpoint",
                )  # fmt: skip
        self.vocab_size: int = self._pieces.vocab_size()
        self.eos_id: int = self._pieces.eos_id()
        self.turn_id: int = self._pieces.piece_to_id(TURN)
        self.stop_ids: tuple[int, ...] = (self.turn_id, self.eos_id)

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of the text and, for each, the index of the character at which it begins."""
        # The one form that all versions of sentencepiece still give; its offsets count UTF-8 bytes.
        proto = SentencePieceText.FromString(self._pieces.encode(text, out_type="serialized_proto"))
        characters = accumulate((len(character.encode()) for character in text), initial=0)
        character_at = {byte: index for index, byte in enumerate(characters)}
        return [piece.id for piece in proto.pieces], [character_at[piece.begin] for piece in proto.pieces]

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """The text; an id beyond the pieces, which the embedding of a padded vocabulary may have, says nothing."""
        return self._pieces.decode([token for token in ids if token < self.vocab_size])

    def piece_bytes(self, token: int) -> bytes:
        """What one token stands for by itself; a byte piece may be a part of a character only."""
        piece = self._pieces.id_to_piece(token)
        if self._pieces.is_byte(token):  # written <0xE2>
            return bytes([int(piece[3:-1], 16)])
        return piece.replace("\u2581", " ").encode()
