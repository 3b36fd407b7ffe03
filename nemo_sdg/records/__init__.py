"""The rows that cross a stage (rows), their columns (fields) and how they are read from files (reading)."""

from nemo_sdg.records.fields import CONTROL_PIECE, FINISH_REASONS, Message, hash_of, parse_turns, shortest_float32
from nemo_sdg.records.reading import Fault, read_objects, read_rows
from nemo_sdg.records.rows import Decision, Labelled, Prompt, Response, Scored

__all__ = [
    "CONTROL_PIECE",
    "FINISH_REASONS",
    "Decision",
    "Fault",
    "Labelled",
    "Message",
    "Prompt",
    "Response",
    "Scored",
    "hash_of",
    "parse_turns",
    "read_objects",
    "read_rows",
    "shortest_float32",
]
