"""The user's documents: text files, a folder of them, or JSON lines with `text`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_sdg.errors import ConfigError
from nemo_sdg.records import CONTROL_PIECE, Fault, read_objects
from nemo_sdg.synthesis.text import pieces

_TEXT = (".txt", ".md")
_ROWS = (".jsonl", ".gz")


@dataclass(frozen=True)
class Document:
    """A text that questions are asked about."""

    id: str
    """Its path below the folder, or file name and line; of a piece `<document>#<number from 1>`."""
    text: str
    of: str = ""
    """The document that a piece was cut from."""


def read_documents(path: str) -> tuple[list[Document], list[Fault]]:
    """The documents at a path in the order of their names, and the rows and files that were set aside.

    Raises:
        ConfigError: there is nothing at the path, it is of no known kind, or none of it can be used.
        UserError: a file of rows cannot be read at all.
    """
    place = Path(path).expanduser()
    if path.startswith(("package:", "hf://")) or place.suffix in _ROWS:
        documents, faults = _rows(path)
    elif place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix in _TEXT)
        documents, faults = _files(files, place)
    elif place.is_file() and place.suffix in _TEXT:
        documents, faults = _files([place], place.parent)
    else:
        found = f"a {place.suffix or 'file without an ending'}" if place.is_file() else "nothing there"
        expected = "a .txt, .md or .jsonl file, or a folder of .txt and .md files"
        raise ConfigError("no documents", where=path, found=found, expected=expected)
    if not documents:
        found = f"{faults[0].reason} in {faults[0].file}" if faults else "no text in it"
        raise ConfigError("no document can be used", where=path, found=found, expected="UTF-8 texts")
    return documents, faults


def in_pieces(documents: Sequence[Document], most: int) -> list[Document]:
    """The documents, those of more than `most` words in pieces: first the first piece of each document, then the second
    ones, so that a few questions are not all about the beginning of one document."""
    cut = [_pieces(document, most) for document in documents]
    longest = max(map(len, cut), default=0)
    return [pieces[number] for number in range(longest) for pieces in cut if number < len(pieces)]


def _pieces(document: Document, most: int) -> list[Document]:
    texts = pieces(document.text, most)
    if len(texts) == 1:
        return [document]
    return [Document(f"{document.id}#{number}", text, document.id) for number, text in enumerate(texts, start=1)]


def _files(files: list[Path], below: Path) -> tuple[list[Document], list[Fault]]:
    documents, faults = [], []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            faults.append(Fault(str(file), 0, f"byte {error.start} is not UTF-8"))
            continue
        except OSError as error:
            faults.append(Fault(str(file), 0, error.strerror or str(error)))
            continue
        reason = _unusable(text)
        if reason:
            faults.append(Fault(str(file), 0, reason))
        else:
            documents.append(Document(file.relative_to(below).as_posix(), text.strip()))
    return documents, faults


def _rows(path: str) -> tuple[list[Document], list[Fault]]:
    documents, faults = [], []
    for line, row in read_objects(path):
        if isinstance(row, Fault):
            faults.append(row)
            continue
        text = row.get("text")
        reason = _unusable(text) if isinstance(text, str) else "no text"
        if reason:
            faults.append(Fault(path, line, reason))
        else:
            documents.append(Document(f"{Path(path).name}:{line}", text.strip()))
    return documents, faults


def _unusable(text: str) -> str | None:
    if not text.strip():
        return "an empty document"
    return "control piece in the document" if CONTROL_PIECE.search(text) else None
