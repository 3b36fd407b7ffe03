"""`download` and hf:// paths against a hub on this machine: real child processes, real sockets, real kills."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_server import Hub, serving
from processes import ROOT

from nemo_sdg.console import Console
from nemo_sdg.errors import HubError
from nemo_sdg.hub.address import Address, is_address
from nemo_sdg.hub.turns import one_at_a_time

LIMIT_S = 90
CHUNK = 10 << 20
"""What huggingface_hub writes at a time: a kill loses less than this of a file."""


@pytest.fixture
def hub():
    with serving() as served:
        yield served


class Children:
    """Processes of a user who works in `home`, with this hub as theirs."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))}
        self.environment = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "PYTHONPATH": str(ROOT)}

    def start(self, *command: str, **more: str | None) -> subprocess.Popen:
        environment = {key: value for key, value in {**self.environment, **more}.items() if value is not None}
        return subprocess.Popen(
            [sys.executable, *command], env=environment, cwd=self.home, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def verb(self, *words: str, **more: str | None) -> tuple[int, str, str]:
        """(exit status, standard output, standard error) of `nemo-sdg WORDS`."""
        return finished(self.start("-m", "nemo_sdg", *words, **more))

    def refused(self, *words: str, **more: str | None) -> str:
        """The one sentence with which a verb ends."""
        status, out, error = self.verb(*words, **more)
        assert status == 2 and error.startswith("nemo-sdg: ") and error.count("\n") == 1, (status, out, error)
        assert "Traceback" not in out + error
        return error

    def resolve(self, path: str, **more: str | None) -> subprocess.Popen:
        code = "import sys; from nemo_sdg import resources\ntry: print(resources.resolve(sys.argv[1]))\n"
        code += "except ValueError as error: sys.exit(str(error))"
        return self.start("-c", code, path, **more)

    def resolved(self, path: str, **more: str | None) -> Path:
        status, out, error = finished(self.resolve(path, **more))
        assert status == 0, error
        return Path(out.splitlines()[-1])

    def unresolved(self, path: str, **more: str | None) -> str:
        status, out, error = finished(self.resolve(path, **more))
        assert status == 1 and error.count("\n") == 1, (status, out, error)
        return error


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> Children:
    return Children(hub, tmp_path)


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, error = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, error


def some_bytes(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def wait_until(holds, what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.02)


FILES = {
    "config.json": b'{"a": 1}',
    "weights/0.0": some_bytes(300_000),
    "weights/0.1": some_bytes(2000, 1),
    "weights/common.pt": b"a pickle",
    "weights/model.layers._extra_state/shard_0.pt": b"a pickle",
    "weights/x._extra_state_0": b"a pickle",
    "pytorch_model-00001-of-00002.bin": some_bytes(5000, 2),
    "empty": b"",
}
OPENED = ["config.json", "empty", "weights/0.0", "weights/0.1"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://nv/m", Address("nv/m", "model", "main", "")),
        ("hf:/nv/m", Address("nv/m", "model", "main", "")),  # what pathlib makes of it
        ("hf://models/nv/m@v1.0/", Address("nv/m", "model", "v1.0", "")),
        ("hf://datasets/nv/d@refs/pr/3/train/a.jsonl", Address("nv/d", "dataset", "refs/pr/3", "train/a.jsonl")),
        ("hf://nv/m@a%2Fb/x", Address("nv/m", "model", "a/b", "x")),
        (f"hf://nv/m-4.1_b@{'a' * 40}", Address("nv/m-4.1_b", "model", "a" * 40, "")),
    ],
)
def test_addresses_are_read_as_huggingface_hub_reads_them(text: str, expected: Address):
    assert is_address(text) and is_address(str(Path(text))) and Address.parse(text) == expected
    assert Address.parse_name(text).kind == expected.kind
    assert expected.commit == ("a" * 40 if "a" * 40 in text else None)


@pytest.mark.parametrize(
    "text",
    ["hf://m", "hf://nv/m/../x", "hf://nv/m@..%2F..%2Fx", "hf://spaces/nv/m", "hf://nv/m//x", "hf://-a/m", "hf://a--b/m",
     "hf://nv/m@", "hf://../m", "hf://nv/m/a\\..\\b"],
)  # fmt: skip
def test_what_is_no_address_or_leaves_the_repository_is_refused(text: str):
    with pytest.raises(HubError, match="not the name of a repository|has no . or .. or empty parts"):
        Address.parse(text)


def test_a_name_may_leave_open_whether_it_is_a_dataset():
    assert Address.parse_name("nv/m").kind is None and Address.parse_name("datasets/nv/m").kind == "dataset"
    assert not is_address("nv/m") and not is_address("/hf://nv/m") and not is_address("hf:///nv")


# ---- download


def test_a_download_is_whole_verified_and_knows_its_commit(hub: Hub, user: Children):
    commit = hub.add("nv/m", FILES)
    status, out, error = user.verb("download", "nv/m", "got", HF_TOKEN=hub.token)
    assert (status, error) == (0, "") and commit in out and "left out" in out
    got = contents(user.home / "got")
    sums = got.pop("SHA256SUMS").decode()
    assert sums.splitlines() == [f"{hashlib.sha256(got[name]).hexdigest()}  {name}" for name in sorted(got)]
    record = json.loads(got.pop("download.json"))
    assert got == {name: FILES[name] for name in OPENED}
    assert (record["repo"], record["kind"], record["revision"], record["commit"]) == ("nv/m", "model", "main", commit)
    assert {f["name"]: (f["size"], f["sha256"]) for f in record["files"]} == {
        name: (len(FILES[name]), hashlib.sha256(FILES[name]).hexdigest()) for name in OPENED
    }
    assert record["left_out"] == sorted(set(FILES) - set(OPENED))
    assert [p.name for p in user.home.iterdir()] == ["got"], "nothing else is left, and no cache was filled"
    assert not [path for _, path, _, _ in hub.asked if any(name in path for name in record["left_out"])]
    # The token goes to the hub and nowhere else: not to the host of the large files, not to a file, not to a line.
    assert all((token is None) == path.startswith("/cdn/") for _, path, token, _ in hub.asked)
    assert {token for _, _, token, _ in hub.asked} == {None, f"Bearer {hub.token}"}
    assert hub.token not in out and not any(hub.token.encode() in data for data in contents(user.home).values())
    before = len(hub.asked)
    status, out, _ = user.verb("download", "nv/m", "got")
    assert status == 0 and "nothing to do" in out and len(hub.asked) == before
    assert "is there already" in user.refused("download", "nv/m", "got", "--revision", "v2")
    (user.home / "got/weights/0.0").write_bytes(b"cut")
    assert "got/weights/0.0: a file is missing or cut short" in user.refused("download", "nv/m", "got")


def test_datasets_revisions_and_patterns(hub: Hub, user: Children):
    hub.add("nv/rows", {"a.jsonl": b"{}", "train/b.jsonl": b"[]", "train/c.parquet": b"p"}, kind="dataset")
    old = hub.add("nv/rows", {"a.jsonl": b"old"}, branch="v1")
    hub.sizes = False  # some mirrors tell names only; then the tree is asked, page by page
    for name in ("1", "2", "3", "4"):
        hub.repositories["nv/rows"].commits[hub.repositories["nv/rows"].branches["main"]][f"more/{name}"] = b""
    assert user.verb("download", "nv/rows", "all")[0] == 0
    assert json.loads((user.home / "all/download.json").read_text())["kind"] == "dataset"
    assert {"a.jsonl", "train/b.jsonl", "more/4"} < set(contents(user.home / "all"))
    assert user.verb("download", "datasets/nv/rows", "some", "--include", "train/*.jsonl", "--include", "a.*")[0] == 0
    assert set(contents(user.home / "some")) == {"a.jsonl", "train/b.jsonl", "download.json", "SHA256SUMS"}
    (user.home / "old").mkdir()  # an empty folder is as good as none
    assert user.verb("download", "hf://datasets/nv/rows@v1", "old")[0] == 0
    assert (user.home / "old/a.jsonl").read_bytes() == b"old"
    assert json.loads((user.home / "old/download.json").read_text())["commit"] == old
    assert "no such file" in user.refused("download", "nv/rows", "none", "--include", "*.csv")
    assert not list(user.home.glob(".none*"))


def test_a_killed_download_goes_on_where_it_was_and_at_the_same_commit(hub: Hub, user: Children):
    files = {"big": some_bytes(2 * CHUNK + 12345), "done": some_bytes(70_000, 1), "small": b"s"}
    commit = hub.add("nv/m", files)
    go_on = threading.Event()
    hub.stall["big"] = (CHUNK + CHUNK // 4, go_on)
    process = user.start("-m", "nemo_sdg", "download", "nv/m", "got")
    work = user.home / ".got.downloading"
    wait_until(hub.stalled.is_set, "the large file is under way")
    wait_until(lambda: (work / "files/done").exists() and (work / "files/small").exists(), "the others are there")
    wait_until(lambda: any(p.stat().st_size >= CHUNK for p in work.rglob("*.incomplete")), "a part is on the disk")
    process.send_signal(signal.SIGKILL)
    finished(process)
    assert not (user.home / "got").exists()
    assert "something else was begun" in user.refused("download", "nv/other", "got")
    go_on.set()
    hub.stall.clear()
    hub.add("nv/m", {"done": b"the branch has moved on"})
    hub.sent.clear()
    status, out, _ = user.verb("download", "nv/m", "got")
    assert status == 0 and f"continuing nv/m at commit {commit}" in out
    assert {name: data for name, data in contents(user.home / "got").items() if name in files} == files
    assert hub.sent == {"big": len(files["big"]) - CHUNK}, "what was there is not fetched again"
    assert [asked for *_, asked in hub.asked if asked] == [f"bytes={CHUNK}-"]
    assert [p.name for p in user.home.iterdir()] == ["got"]


def test_a_line_that_breaks_is_taken_up_and_one_that_brings_nothing_is_given_up(hub: Hub, user: Children):
    data = some_bytes(300_000)
    hub.add("nv/m", {"w": data})
    hub.drop["w"] = [100_000, 1]
    hub.busy["w"] = 1
    # The library would warn of it, and show a bar even where there is no terminal.
    status, _, error = user.verb("download", "nv/m", "got", TQDM_POSITION="-1")
    assert (status, error) == (0, "") and (user.home / "got/w").read_bytes() == data
    assert [asked for *_, asked in hub.asked if asked] == ["bytes=100000-", "bytes=100001-"]
    hub.drop["w"] = [0] * 99
    assert "nv/m@main/w: the line to the hub breaks again and again" in user.refused("download", "nv/m", "again")
    assert not (user.home / "again").exists()


@pytest.mark.parametrize("size", [900, 300_000])
def test_wrong_bytes_are_deleted_and_asked_for_again(hub: Hub, user: Children, size: int):
    files = {"bad": some_bytes(size), "good": some_bytes(size + 1, 1)}
    hub.add("nv/m", files)
    hub.spoil.add("bad")
    error = user.refused("download", "nv/m", "got")
    assert "nv/m@main/bad: the bytes are not those that the hub announces" in error
    assert ("SHA-256" in error) == (size > 900)
    assert not (user.home / "got").exists() and not (user.home / ".got.downloading/files/bad").exists()
    assert (user.home / ".got.downloading/files/good").exists(), "the others are kept"
    hub.spoil.clear()
    hub.sent.clear()
    assert user.verb("download", "nv/m", "got")[0] == 0
    assert hub.sent == {"bad": size}
    assert (user.home / "got/bad").read_bytes() == files["bad"] and (user.home / "got/good").read_bytes() == files[
        "good"
    ]


def test_what_the_hub_refuses_is_one_sentence_with_the_way_out(hub: Hub, user: Children):
    hub.add("nv/gated", FILES, gated=True)
    hub.add("nv/private", FILES, private=True)
    hub.add("nv/m", FILES)
    hub.add("nv/pickles", {"pytorch_model.bin": b"x", "weights.pt": b"y"})
    hub.add("nv/closed", {"a.json": b"1", "b": b"2"})
    hub.add("nv/gone", {"a": b"1", "b.json": b"2"})
    hub.add("nv/evil", {"x": b"1"})
    hub.status.update({"a.json": 403, "b.json": 404})
    hub.names["x"] = "../../evil"
    cases = [
        ("nv/gated", "", f"gated, found status 401; accept its terms at {hub.url}/nv/gated and set HF_TOKEN"),
        ("nv/gated", hub.token, f"gated, found status 403; accept its terms at {hub.url}/nv/gated and set HF_TOKEN"),
        ("nv/private", "", "no such repository, or it is private, found status 401; check the name"),
        ("nv/absent", hub.token, "no such repository, or it is private, found status 404; check the name"),
        ("nv/m", "hf_wrong", "the hub does not accept the token, found status 401; set HF_TOKEN"),
        ("nv/m@v9", "", "nv/m@v9: the repository has no such revision, found status 404"),
        ("nv/pickles", "", "nothing that could be opened, found pytorch_model.bin, weights.pt"),
        ("nv/m/sub", "", "a path inside a repository cannot be downloaded alone"),
        ("nv/closed", "", "nv/closed@main/a.json: the hub forbids it, found status 403; set HF_TOKEN"),
        ("nv/gone", "", "nv/gone@main/b.json: the repository has no such file, found status 404; see"),
        ("nv/evil", "", "names a file that would lie elsewhere, found '../../evil'"),
    ]
    code = "import json, os, sys; from nemo_sdg.cli import main\n"
    code += "for number, (name, token, _) in enumerate(json.loads(sys.argv[1])):\n"
    code += "    os.environ['HF_TOKEN'] = token\n"
    code += "    assert main(['download', name, f'got{number}']) == 2\n"
    status, out, error = finished(user.start("-c", code, json.dumps(cases)))
    assert status == 0, error
    sentences = error.splitlines()
    for (name, _, words), sentence in zip(cases, sentences, strict=True):
        assert sentence.startswith("nemo-sdg: ") and words in sentence, (name, sentence)
    assert "s3cret" not in out + error and hub.token not in out + error and "hf_wrong" not in out + error
    # What the other file of nv/closed and nv/gone brought may be gone on with; of the others nothing is left.
    assert {path.name for path in user.home.iterdir()} <= {".got8.downloading", ".got9.downloading"}
    assert not (user.home.parent / "evil").exists()


def test_no_network_and_no_permission_to_ask_are_one_sentence(hub: Hub, user: Children):
    error = user.refused("download", "nv/m", "got", HF_ENDPOINT="http://name:secret@127.0.0.1:1")
    assert "nv/m@main: the hub cannot be reached" in error and "an answer of http://127.0.0.1:1;" in error
    assert "secret" not in error
    error = user.refused("download", "nv/m", "got", HF_HUB_OFFLINE="1")
    assert "the hub may not be asked, found HF_HUB_OFFLINE=1; unset HF_HUB_OFFLINE" in error
    assert not hub.asked and not list(user.home.iterdir())


def test_too_little_room_is_known_before_and_a_full_disk_is_one_sentence(hub: Hub, user: Children):
    hub.add("nv/m", {"w": some_bytes(3_000_000), "small": b"s"})
    hub.claims["small"] = 10**18
    error = user.refused("download", "nv/m", "got")
    assert re.search(r"too little room, found [\d.]+ [GT]B free, expected 1000000.0 TB for nv/m@main; make room", error)
    assert not hub.sent
    hub.claims.clear()
    # The kernel refuses the byte after the first million, as it does when a quota is used up.
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    code += "import sys; from nemo_sdg.cli import main; sys.exit(main(sys.argv[1:]))"
    status, _, error = finished(user.start("-c", code, "download", "nv/m", "got"))
    assert status == 2 and error.count("\n") == 1 and "nv/m@main/w: the disk is full" in error, error
    assert not (user.home / "got").exists()
    assert user.verb("download", "nv/m", "got")[0] == 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# ---- hf:// in the cache


def test_four_processes_download_once(hub: Hub, user: Children):
    commit = hub.add("nv/m", FILES)
    go_on = threading.Event()
    hub.stall["weights/0.0"] = (1000, go_on)
    processes = [user.resolve("hf://nv/m") for _ in range(4)]
    wait_until(hub.stalled.is_set, "one of them downloads")
    time.sleep(3)  # the others have come to the lock by now; if they had not, they would find the files
    go_on.set()
    texts = []
    for process in processes:
        status, out, error = finished(process)
        assert status == 0, error
        texts.append(out)
    assert sum("downloading nv/m@main" in text and "waiting" not in text for text in texts) == 1, texts
    assert sum("waiting for another process that downloads nv/m@main" in text for text in texts) == 3, texts
    assert any(re.search(r"process \d+ on ", text) for text in texts), "they say whom they wait for"
    paths = {text.splitlines()[-1] for text in texts}
    assert paths == {str(user.home / "hf/hub/models--nv--m/snapshots" / commit)}
    assert hub.sent == {name: len(FILES[name]) for name in OPENED if FILES[name]}
    assert hub.times("GET", "/api/") == 1
    asked = len(hub.asked)
    assert user.resolved("hf://nv/m") == user.resolved(f"hf://nv/m@{commit}", HF_HUB_OFFLINE="1")
    assert len(hub.asked) == asked, "what is in the cache needs no network"


def test_a_dead_downloader_lets_the_next_one_go_on(hub: Hub, user: Children):
    data = some_bytes(2 * CHUNK)
    hub.add("nv/m", {"w": data})
    go_on = threading.Event()
    hub.stall["w"] = (CHUNK + 1, go_on)
    first = user.resolve("hf://nv/m")
    blobs = user.home / "hf/hub/models--nv--m/blobs"
    wait_until(lambda: any(p.stat().st_size >= CHUNK for p in blobs.glob("*.incomplete")), "a part is on the disk")
    second = user.resolve("hf://nv/m")
    time.sleep(2)
    assert hub.times("GET", "/api/") == 1 and second.poll() is None
    hub.stall.clear()
    first.kill()
    go_on.set()
    finished(first)
    status, out, error = finished(second)
    assert status == 0, error
    assert (Path(out.splitlines()[-1]) / "w").read_bytes() == data
    assert f"bytes={CHUNK}-" in [asked for *_, asked in hub.asked]


def test_a_branch_stays_at_its_commit_until_another_is_named(hub: Hub, user: Children):
    old = hub.add("nv/m", {"a": b"old", "b": b"same"})
    assert (user.resolved("hf://nv/m") / "a").read_bytes() == b"old"
    new = hub.add("nv/m", {"a": b"new", "b": b"same"})
    asked = len(hub.asked)
    with one_at_a_time(user.home / "hf/hub/.locks/models--nv--m/nemo-sdg.lock", Console(io.StringIO()), "x"):
        # Also while another process downloads another commit.
        assert user.resolved("hf://nv/m").name == old and len(hub.asked) == asked
    assert (user.resolved(f"hf://nv/m@{new}") / "a").read_bytes() == b"new"
    assert hub.sent["b"] == len(b"same"), "what both commits hold is there once"
    code = "from huggingface_hub import scan_cache_dir; info = scan_cache_dir(); print(info.warnings, len(info.repos))"
    assert finished(user.start("-c", code))[1].split() == ["[]", "1"], "the cache stays one that other tools can read"


def test_a_path_inside_a_repository_brings_what_lies_under_it(hub: Hub, user: Children):
    hub.add("nv/rows", {"train/a.jsonl": b"a", "train/b.jsonl": b"b", "trainer": b"t", "c": b"c"}, kind="dataset")
    file = user.resolved("hf://datasets/nv/rows/train/a.jsonl")
    assert file.read_bytes() == b"a" and hub.sent == {"train/a.jsonl": 1}
    assert user.resolved("hf://datasets/nv/rows/train/a.jsonl", HF_HUB_OFFLINE="1") == file
    assert "cache does not hold it" in user.unresolved("hf://datasets/nv/rows/train/b.jsonl", HF_HUB_OFFLINE="1")
    folder = user.resolved("hf://datasets/nv/rows/train")
    assert set(contents(folder)) == {"a.jsonl", "b.jsonl"} and hub.sent == {"train/a.jsonl": 1, "train/b.jsonl": 1}
    assert user.resolved("hf://datasets/nv/rows/c").read_bytes() == b"c"
    asked = len(hub.asked)
    assert user.resolved("hf://datasets/nv/rows/train/b.jsonl").read_bytes() == b"b" and len(hub.asked) == asked
    assert "no such file" in user.unresolved("hf://datasets/nv/rows/absent")
    assert "no such repository" in user.unresolved("hf://nv/rows")  # it is no model


def test_a_cache_that_another_tool_filled_is_checked_or_taken_as_it_is(hub: Hub, user: Children):
    commit = hub.add("nv/m", {"a": b"one", "w": some_bytes(5000)})
    code = "from huggingface_hub import snapshot_download; print(snapshot_download('nv/m'))"
    theirs = Path(finished(user.start("-c", code, HF_HUB_DISABLE_PROGRESS_BARS="1"))[1].strip())
    assert theirs.name == commit
    assert user.resolved("hf://nv/m", HF_HUB_OFFLINE="1") == theirs
    blob = (theirs / "w").resolve()
    blob.write_bytes(some_bytes(5000, 7))
    hub.sent.clear()
    assert user.resolved("hf://nv/m") == theirs
    assert (theirs / "w").read_bytes() == some_bytes(5000) and hub.sent == {"w": 5000}, "a damaged file is replaced"


# ---- what the verbs make of it


def test_a_run_records_the_commit_of_what_it_takes_from_the_hub(hub: Hub, user: Children):
    rows = {"prompts.jsonl": b'{"prompt": "a"}\n'}
    commit = hub.add("nv/rows", rows, kind="dataset")
    code = """if True:
        import sys
        from nemo_sdg.config import Data, RunConfig
        from nemo_sdg.store import Run
        try:
            Run.open("run", RunConfig(data=Data(prompts="hf://datasets/nv/rows/prompts.jsonl")), writer=True).close()
        except ValueError as error:
            sys.exit(str(error))"""
    assert finished(user.start("-c", code))[0] == 0
    assert f"data.prompts: {commit}" in (user.home / "run/run.yaml").read_text()
    hub.add("nv/rows", {**rows, "more": b""}, kind="dataset")
    assert finished(user.start("-c", code))[0] == 0, "the cache keeps the branch where it was"
    status, _, error = finished(user.start("-c", code, HF_HOME=str(user.home / "another")))
    assert status == 1 and "data.prompts is not what this run began with, found" in error and commit in error


def test_a_checkpoint_inside_a_repository_is_opened_through_the_links_of_the_cache(hub: Hub, user: Children):
    tiny = ROOT / "examples/tiny/instruct"
    files = {f"nemo/{path.relative_to(tiny)}": path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    hub.add("nv/tiny", {**files, "README.md": b"hi"})
    code = "from nemo_sdg.checkpoints.folder import ModelFolder as M; import sys\n"
    code += (
        "from nemo_sdg.checkpoints.survey import survey; survey(M.open(sys.argv[1])); print(M.open(sys.argv[1]).digest)"
    )
    told = finished(user.start("-c", code, "hf://nv/tiny/nemo"))
    assert told[0] == 0, told[2]
    assert told[1].splitlines()[-1] == finished(user.start("-c", code, str(tiny)))[1].strip()
    assert "README.md" not in hub.sent


def test_generate_under_torchrun_takes_model_and_prompts_from_the_hub_once(hub: Hub, user: Children):
    hub.add_folder("nv/tiny", ROOT / "examples/tiny/instruct")
    hub.add(
        "nv/rows",
        {"p.jsonl": b'{"id": "x", "prompt": "Add 2 and 3."}\n{"id": "y", "prompt": "Sort: cab"}\n'},
        kind="dataset",
    )
    words = "-m torch.distributed.run --standalone --nproc_per_node 2 -m nemo_sdg generate --tp 2 --dtype fp32".split()
    words += ["--model", "hf://nv/tiny@main", "--prompts", "hf://datasets/nv/rows/p.jsonl", "--out", "out.jsonl"]
    status, out, error = finished(user.start(*words, "--max-tokens", "8", HF_TOKEN=hub.token, OMP_NUM_THREADS="1"))
    assert status == 0, out + error
    rows = [json.loads(line) for line in (user.home / "out.jsonl").read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == ["x", "y"] and all(row["response_token_ids"] for row in rows)
    # The cache holds equal contents once, and so asks for them once.
    distinct = {path.read_bytes() for path in ROOT.glob("examples/tiny/instruct/**/*") if path.is_file()}
    assert sum(hub.sent.values()) - hub.sent["p.jsonl"] == sum(map(len, distinct))
    assert hub.times("GET", "/api/models/") == hub.times("GET", "/api/datasets/") == 1
    assert hub.token not in out + error and "Traceback" not in out + error


def test_plan_takes_the_metadata_alone(hub: Hub, user: Children):
    tiny = ROOT / "examples/tiny"
    status, _, error = user.verb("convert", str(tiny / "base"), "base-hf", "--to", "hf")
    assert status == 0, error
    for name, folder in (("base", user.home / "base-hf"), ("instruct", tiny / "instruct"), ("reward", tiny / "reward")):
        hub.add_folder(f"nv/{name}", folder)
    models = [f"models.{name}=hf://nv/{name}" for name in ("base", "instruct", "reward")]
    status, there, error = user.verb("plan", "tiny", "topology.tp=2", "--details", *models)
    assert status == 0, error
    weights = [name for name in hub.sent if name.endswith((".0", ".safetensors"))]
    assert weights == ["model.safetensors"] and there.count("planned from its metadata; to run it,") == 3
    blobs = (user.home / "hf/hub").glob("models--*/blobs/*")
    assert not list(blobs), "the cache still knows nothing of them"
    here = user.verb("plan", "tiny", "topology.tp=2", "--details", f"models.base={user.home}/base-hf")[1]

    def figures(text: str) -> list[str]:
        """The rows of the tables, without the folders and the notes at their ends."""
        phase = r"  (?:generate|score|train \w+) +"
        rows = [re.match(phase + r"(?:0 .*|[\d,]+ +[\d,]+ +\d+)", line) for line in text.splitlines()]
        return [row[0] for row in rows if row]

    assert figures(there) == figures(here) and len(figures(here)) == 8


# ---- turns


def test_a_file_system_without_locks_is_refused_and_a_forked_child_does_not_hold_the_turn(tmp_path: Path, monkeypatch):
    silent = Console(io.StringIO())
    with one_at_a_time(tmp_path / "lock", silent, "x") as tell:
        tell("1 of 2 GB")
        assert re.fullmatch(r"1 of 2 GB, process \d+ on .*\n", (tmp_path / "lock").read_text())
        started, ended = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.write(started[1], b"x")
            os.close(ended[1])
            os.read(ended[0], 1)
            os._exit(0)
        os.read(started[0], 1)

    def next_one() -> None:
        with one_at_a_time(tmp_path / "lock", silent, "x"):
            pass

    thread = threading.Thread(target=next_one, daemon=True)
    thread.start()
    thread.join(10)
    lives = os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(ended[1])
    assert lives and not thread.is_alive()
    os.waitpid(child, 0)
    assert silent.stream.getvalue() == ""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(HubError, match="no locks.*set HF_HOME"), one_at_a_time(tmp_path / "lock", silent, "x"):
        pass


def test_a_lock_that_was_taken_away_with_its_folder_guards_nothing(tmp_path: Path):
    lock, order, inside = tmp_path / "work/lock", [], threading.Event()

    def second() -> None:
        inside.wait()
        with one_at_a_time(lock, Console(io.StringIO()), "x"):
            order.append(("second", lock.exists()))

    thread = threading.Thread(target=second)
    thread.start()
    with one_at_a_time(lock, Console(io.StringIO()), "x"):
        inside.set()
        time.sleep(1)
        lock.unlink()
        order.append(("first", lock.exists()))
    thread.join(30)
    assert order == [("first", False), ("second", True)], "a third process would find the lock of the second"
