"""`nemo-sdg select`: any scored file, kept and dropped rows, a sentence for what is wrong."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_sdg import cli
from nemo_sdg.config import ATTRIBUTES
from nemo_sdg.quality.among import SUPERSEDED
from nemo_sdg.records import Decision, read_rows
from nemo_sdg.store import beside, parts

SCORES = dict.fromkeys(ATTRIBUTES, 4.0)


def line(name: str, response: str, **columns: object) -> str:
    return json.dumps({"id": name, "prompt": "q " + name, "response": response, "scores": SCORES, **columns}) + "\n"


LINES = [
    line("a", "first", topic="t"),
    line("b", "low", scores={**SCORES, "helpfulness": 1.0}),
    "{broken\n",
    line("c", "jane@example.com"),
    line("a", "again"),
    '{"prompt": "x", "response": "y"}\n',
    "\n",
    line("d", "last", sample=3),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "scored.jsonl"
    file.write_text("".join(LINES))
    return file


def select(source: Path, out: Path, *words: str) -> int:
    return cli.main(["select", "--input", str(source), "--out", str(out), *words])


def test_every_row_is_kept_dropped_or_faulty_and_lies_where_it_says(source, tmp_path, capsys):
    out = tmp_path / "kept.jsonl"
    assert select(source, out, "select.pii=drop") == 0
    kept, dropped, faulty = (
        [json.loads(text) for text in (tmp_path / f"kept.jsonl{end}").read_text().splitlines()]
        for end in ("", ".dropped.jsonl", ".faulty.jsonl")
    )
    assert [row["id"] for row in kept] == ["a", "d"] and kept[0]["topic"] == "t" and kept[1]["sample"] == 3
    assert {row["id"]: row["reason"] for row in dropped} == {
        "b": "helpfulness below 3", "c": "personal data in the response: EMAIL",
    }  # fmt: skip
    assert [row["line"] for row in faulty] == [3, 5, 6] and "stands in line 1" in faulty[1]["reason"]
    assert len(read_rows(out, Decision)[0]) == 2 and not list(tmp_path.glob(".*"))
    told = capsys.readouterr().out
    for text in ("rows in", "7", "faulty", "3", "dropped: helpfulness below 3", "kept", "28.6 %", "distinct_2", str(out)):
        assert text in told, told
    assert select(out, tmp_path / "again.jsonl") == 0  # what it wrote it also reads
    assert (tmp_path / "again.jsonl").read_text() == out.read_text()


def test_a_compressed_file_gives_the_same_and_old_neighbours_go(source, tmp_path, capsys):
    packed = tmp_path / "scored.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    assert select(source, tmp_path / "one.jsonl") == select(packed, tmp_path / "two.jsonl") == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    source.write_text(LINES[0])
    assert select(source, tmp_path / "one.jsonl") == 0
    assert not list(tmp_path.glob("one.jsonl.*")) and len((tmp_path / "one.jsonl").read_text().splitlines()) == 1


def test_a_folder_and_a_glob_are_one_file_after_the_other(source, tmp_path, capsys):
    """Rows as a stage of a run leaves them; of two with one id the second is faulty, in whichever file it stands."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "scored"
    (folder / "part").mkdir(parents=True)
    good = [json.loads(LINES[0]), json.loads(line("e", "fifth"))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(good[1:]), folder / "part/2.parquet")
    (folder / "1.jsonl").write_text("".join(LINES))
    (folder / "3.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in good).encode()))
    (folder / "SUCCESS.json").write_text("{}")
    aside, data = parts.named("faulty", 0, [{"line": 3, "reason": "not of this world"}])
    for file in (folder / aside, beside(folder / "x.jsonl", "faulty")):
        file.write_bytes(data)
    faults = {}
    for name, where in (("folder", folder), ("glob", folder / "**/[123].*")):
        out = tmp_path / f"{name}.jsonl"
        assert select(where, out, "select.pii=drop") == 0
        assert [json.loads(text)["id"] for text in out.read_text().splitlines()] == ["a", "d", "e"]
        faulty = [json.loads(text) for text in (tmp_path / f"{name}.jsonl.faulty.jsonl").read_text().splitlines()]
        faults[name] = [(Path(row["file"]).name, row["line"]) for row in faulty]
        twice = [row["reason"] for row in faulty if "stands" in row["reason"]]
        places = [("a", "1.jsonl:1"), ("a", "1.jsonl:1"), ("e", "3.jsonl.gz:2")]
        assert twice == [f"the id {name!r} stands in {folder}/{place} already" for name, place in places]
    found = [("1.jsonl", 3), ("1.jsonl", 5), ("1.jsonl", 6), ("3.jsonl.gz", 1), ("2.parquet", 1)]
    assert faults == dict.fromkeys(faults, found)
    assert select(folder, folder / "1.jsonl") == 2 and "the input itself" in capsys.readouterr().err
    assert select(folder, tmp_path / "k.jsonl", "--strict") == 2 and f"{folder}/1.jsonl:3" in capsys.readouterr().err


def test_nothing_kept_is_an_answer(source, tmp_path, capsys):
    assert select(source, tmp_path / "kept.jsonl", "select.minimum.helpfulness=9") == 0
    assert (tmp_path / "kept.jsonl").read_text() == "" and "0 kept rows" in capsys.readouterr().out


def test_a_label_of_ones_own_has_limits_where_it_is_named(tmp_path, capsys):
    source, out = tmp_path / "scored.jsonl", tmp_path / "kept.jsonl"
    rows = {"high": {"curt": -1.0}, "low": {"curt": -1.5}, "none": {}}
    source.write_text("".join(line(name, name, scores={**SCORES, **own}) for name, own in rows.items()))
    assert select(source, out, "select.minimum.curt=-1", "reward.outputs.curt=0") == 0
    assert [json.loads(text)["id"] for text in out.read_text().splitlines()] == ["high"]
    assert select(source, out, "select.minimum.curt=-1") == 2
    assert "stands in reward.outputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["generate.samples=3"], "not a setting of selection, expected select.KEY=VALUE or reward.outputs"),
        (["percentile=3"], "write select.percentile if that is meant"),
        (["select.percentil=3"], "the nearest valid key is select.percentile"),
        (["select.percentile=101"], "found 101"),
        (["select.near_duplicates=0.1"], "a number from 0.3 to 1"),
        (["select.pii=maybe"], "drop, redact"),
        (["select.balance.topic=1.5"], "a share above 0 and below 1"),
        (["select.maximum_copies=0.1"], "there is nothing to copy from"),
        (["select.decontaminate=['']"], "paths that are not empty"),
        (["select.decontaminate=[absent.jsonl]"], "absent.jsonl"),
        (["--strict"], "scored.jsonl:3"),
        (["select"], "expected key=value"),
        (["--out", "/nowhere/kept.jsonl"], "no such folder"),
        (["--out", "kept.jsonl.gz"], "a compressed file"),
        (["--input", "absent.jsonl"], "absent.jsonl"),
        (["--input", "absent/*.jsonl"], "there is no file of rows"),
        (["--input", "*.jsonl", "--strict"], ": scored.jsonl:3"),
        (["--input", ""], "an empty path"),
        (["--input", "."], "a place in the folder of the input"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, said, source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert select(source, tmp_path / "kept.jsonl", *words) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1, told
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scored.jsonl"]


def test_the_input_is_not_written_over_and_an_empty_one_is_told(source, tmp_path, capsys):
    assert select(source, source) == 2 and "the input itself" in capsys.readouterr().err
    source.write_text("{}\n")
    assert select(source, tmp_path / "kept.jsonl") == 2 and "no row can be used" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["scored.jsonl"]


def test_no_file_that_is_read_is_written_over_or_taken_away(source, tmp_path, capsys):
    for end in (".dropped.jsonl", ".faulty.jsonl"):
        other = source.rename(tmp_path / f"kept.jsonl{end}")
        held = tmp_path / f"held.jsonl{end}"
        held.write_text('{"question": "one of theirs"}\n')
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert select(other, tmp_path / "kept.jsonl") == 2 and "the input itself" in capsys.readouterr().err
        for word in (f"select.likeness={held}", f"select.decontaminate=[{held}]"):
            assert select(other, tmp_path / "held.jsonl", word) == 2 and "the input itself" in capsys.readouterr().err
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
        source = other


def test_of_an_answer_and_its_revisions_one_is_kept(tmp_path):
    """Rows as a run leaves them in scored/; a `root` that means something else is none of ours."""
    file, out = tmp_path / "scored.jsonl", tmp_path / "kept.jsonl"
    revised = {"root": "a", "revises": "a"}
    better, worse = {**SCORES, "helpfulness": 4.5}, {**SCORES, "helpfulness": 3.5}
    rows = [line("a", "first"), line("b", "other", provenance={"root": "/data"})]
    rows += [line("a/r1#0", "second", scores=better, provenance=revised)]
    rows += [line("a/r1#1", "third", scores=worse, provenance=revised)]
    rows += [line("c", "more", provenance={"root": "/data"}), line("d", "d", provenance={"root": ["a"], "revises": 1})]
    file.write_text("".join(rows))
    assert select(file, out) == 0
    assert [json.loads(text)["id"] for text in out.read_text().splitlines()] == ["b", "a/r1#0", "c", "d"]
    dropped = [json.loads(text) for text in (tmp_path / "kept.jsonl.dropped.jsonl").read_text().splitlines()]
    assert [(row["id"], row["reason"]) for row in dropped] == [("a", SUPERSEDED), ("a/r1#1", SUPERSEDED)]


def test_it_needs_no_torch(source, tmp_path):
    code = (
        "import sys; from nemo_sdg import cli\n"
        f"status = cli.main(['select', '--input', {str(source)!r}, '--out', {str(tmp_path / 'k.jsonl')!r},"
        " 'select.near_duplicates=0.8'])\n"
        "print(status, [name for name in ('torch', 'megatron', 'nemo', 'sklearn') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert told.stdout.strip().endswith("0 []"), told.stdout + told.stderr


def test_broken_checks_of_any_file_drop_rows_without_torch(tmp_path):
    source, out = tmp_path / "judged.jsonl", tmp_path / "kept.jsonl"
    source.write_text(line("a", "x", broken=[]) + line("b", "y", broken=["off topic"]) + line("c", "z"))
    code = f"import sys; from nemo_sdg import cli; status = cli.main(['select', '--input', {str(source)!r}, '--out', {str(out)!r}])"
    told = subprocess.run([sys.executable, "-c", code + "; print('torch' in sys.modules, status)"], capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == "False 0" and "off topic" in told.stdout
    assert [json.loads(text)["id"] for text in out.read_text().splitlines()] == ["a", "c"]
    assert select(source, out, "select.checks=false") == 0 and out.read_text().count("\n") == 3
