"""The rows that cross a stage (rows, pairs), their columns (fields) and how files hold them (reading, sources)."""

from nemo_sdg.records.dialogues import Dialogue
from nemo_sdg.records.fields import CONTROL_PIECE, FINISH_REASONS, Message, hash_of, parse_turns, shortest_float32
from nemo_sdg.records.labels import labelled
from nemo_sdg.records.pairs import Pair
from nemo_sdg.records.reading import Fault, each_row, read_objects, read_rows, why_none
from nemo_sdg.records.rows import Decision, Labelled, Prompt, Response, Scored
from nemo_sdg.records.sources import named_files, row_files

__all__ = [
    "CONTROL_PIECE",
    "FINISH_REASONS",
    "Decision",
    "Dialogue",
    "Fault",
    "Labelled",
    "Message",
    "Pair",
    "Prompt",
    "Response",
    "Scored",
    "each_row",
    "hash_of",
    "labelled",
    "named_files",
    "parse_turns",
    "read_objects",
    "read_rows",
    "row_files",
    "shortest_float32",
    "why_none",
]
