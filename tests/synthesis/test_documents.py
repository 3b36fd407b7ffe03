"""The user's documents: files, folders and rows; what cannot be used is set aside with its reason."""

from __future__ import annotations

import json

import pytest

from nemo_sdg.errors import ConfigError, UserError
from nemo_sdg.synthesis.documents import Document, in_pieces, read_documents


def test_a_folder_in_the_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("\ufeffsecond\n", encoding="utf-8")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "sub/c.txt").write_text("third")
    (tmp_path / "d.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "e.txt").write_text(" \n")
    (tmp_path / "f.txt").write_text("x <extra_id_1> y")
    (tmp_path / "ignored.pdf").write_bytes(b"%PDF")
    documents, faults = read_documents(str(tmp_path))
    assert documents == [Document("a.md", "first"), Document("b.txt", "second"), Document("sub/c.txt", "third")]
    reasons = ["byte 3 is not UTF-8", "an empty document", "control piece in the document"]
    assert [fault.reason for fault in faults] == reasons and faults[0].file == str(tmp_path / "d.txt")
    assert read_documents(str(tmp_path / "a.md"))[0] == documents[:1]


def test_rows(tmp_path):
    file = tmp_path / "d.jsonl"
    lines = [json.dumps({"text": "one"}), "{", json.dumps({"txt": "two"}), json.dumps({"text": "three"})]
    file.write_text("\n".join(lines))
    documents, faults = read_documents(str(file))
    assert documents == [Document("d.jsonl:1", "one"), Document("d.jsonl:4", "three")]
    assert [(fault.line, fault.reason[:11]) for fault in faults] == [(2, "broken JSON"), (3, "no text")]


def test_nothing_that_can_be_used(tmp_path):
    with pytest.raises(ConfigError, match="no documents, found nothing there"):
        read_documents(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="no document can be used, found no text in it"):
        read_documents(str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no document can be used, found byte 0 is not UTF-8 in"):
        read_documents(str(tmp_path))
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(ConfigError, match="no documents, found a .pdf"):
        read_documents(str(tmp_path / "x.pdf"))
    with pytest.raises(UserError, match="cannot read the rows"):
        read_documents(str(tmp_path / "absent.jsonl"))


def test_long_documents_come_in_pieces_that_know_them():
    long, short = Document("long.txt", "One two three. Four five six. Seven."), Document("short.txt", "Eight.")
    assert in_pieces([long, short], 3) == [
        Document("long.txt#1", "One two three.", "long.txt"), short,
        Document("long.txt#2", "Four five six.", "long.txt"), Document("long.txt#3", "Seven.", "long.txt"),
    ]  # fmt: skip
    assert in_pieces([long, short], 9) == [long, short]
