"""A small Hugging Face hub on this machine, for tests: repositories of bytes behind the hub's own protocol.

What huggingface_hub asks is answered as the hub answers: /api/{models,datasets}/OWNER/NAME/revision/REV with the
files' hashes, /tree/ in pages, /resolve/ with ETag and X-Repo-Commit, large files by a redirect to another host
with X-Linked-Etag, ranges, and the error codes of gated, private and missing repositories. It can also misbehave.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 1000
"""Files of more bytes are in the hub's large-file storage."""
_BLOCK = 1 << 20


@dataclass
class Repository:
    """A model or dataset: its files by commit, and its branches."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    kind: str = "model"
    gated: bool = False
    private: bool = False


@dataclass
class Hub:
    """What the server holds, how it misbehaves, and what it was asked. `token` is the one that it accepts."""

    token: str = "hf_" + "t" * 34
    repositories: dict[str, Repository] = field(default_factory=dict)
    sizes: bool = True
    """Whether the short listing tells sizes and hashes."""
    drop: dict[str, list[int]] = field(default_factory=dict)
    """By file: the line breaks after so many bytes of an answer, once for each number."""
    stall: dict[str, tuple[int, threading.Event]] = field(default_factory=dict)
    """By file: nothing comes after so many bytes until the event is set."""
    spoil: set[str] = field(default_factory=set)
    """Files whose last byte arrives wrong."""
    status: dict[str, int] = field(default_factory=dict)
    """By file: an answer that is always this status."""
    busy: Counter = field(default_factory=Counter)
    """How often a file is refused with status 503 before it is given."""
    names: dict[str, str] = field(default_factory=dict)
    """What the listing calls a file instead."""
    claims: dict[str, int] = field(default_factory=dict)
    """The size that the listing claims instead."""
    asked: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """(method, path, Authorization, Range) of every request, in order."""
    sent: Counter = field(default_factory=Counter)
    """Bytes of content that went out, by file."""
    stalled: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], *, branch: str = "main", **about: object) -> str:
        """A repository, or a new commit on a branch of it; returns the commit."""
        text = json.dumps([name, branch, sorted((n, hashlib.sha1(b).hexdigest()) for n, b in files.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        repository = self.repositories.setdefault(name, Repository({}, {}, **about))
        repository.commits[commit] = files
        repository.branches[branch] = commit
        return commit

    def add_folder(self, name: str, folder: Path, **about: object) -> str:
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return self.add(name, {str(path.relative_to(folder)): path.read_bytes() for path in found}, **about)

    def times(self, method: str, part: str) -> int:
        """How many requests of a method had this in their path."""
        return sum(one == method and part in path for one, path, _, _ in self.asked)


@contextlib.contextmanager
def serving():
    """A hub on a port of its own; its address is `url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        for _, event in hub.stall.values():
            event.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.hub.asked.append((self.command, path, self.headers["Authorization"], self.headers["Range"]))
        try:
            if path.startswith("/cdn/"):
                return self._large(path.removeprefix("/cdn/"))
            api = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/(revision|tree)/(.+)", path)
            if api:
                return self._listed(*api.groups(), parse_qs(address.query))
            file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path)
            if file:
                return self._file("dataset" if file[1] else "model", *file.groups()[1:])
            self._refuse(404, None)
        except (BrokenPipeError, ConnectionResetError):  # the one who asked was killed
            self.close_connection = True

    def _open(self, kind: str, name: str, *, listing: bool) -> Repository | None:
        """The repository, or None after a refusal. As on the hub, a stranger learns nothing of what is not public."""
        token = self.headers["Authorization"]
        if token is not None and token != f"Bearer {self.hub.token}":
            self._refuse(401, None, "Invalid credentials in Authorization header")
            return None
        found = self.hub.repositories.get(name)
        if found is None or found.kind != kind or (found.private and token is None):
            self._refuse(404 if token else 401, "RepoNotFound")
            return None
        if found.gated and not listing:
            self._refuse(403 if token else 401, "GatedRepo")
            return None
        return found

    def _listed(self, kind: str, name: str, what: str, revision: str, query: dict[str, list[str]]) -> None:
        repository = self._open(kind, name, listing=True)
        if repository is None:
            return
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound")
        files = sorted(repository.commits[commit].items())
        if what == "tree":
            start = int(query.get("cursor", ["0"])[0])
            page = [self._in_tree(*file) for file in files[start : start + 3]]
            more = start + 3 < len(files)
            link = f'<{self.hub.url}{urlsplit(self.path).path}?cursor={start + 3}>; rel="next"'
            return self._json(page, {"Link": link} if more else {})
        with_hashes = self.hub.sizes and query.get("blobs") == ["True"]
        siblings = [self._sibling(*file) if with_hashes else {"rfilename": file[0]} for file in files]
        self._json({"id": name, "sha": commit, "siblings": siblings})

    def _sibling(self, name: str, data: bytes) -> dict:
        entry = {
            "rfilename": self.hub.names.get(name, name),
            "size": self.hub.claims.get(name, len(data)),
            "blobId": blob(data),
        }
        if len(data) > LARGE:
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _in_tree(self, name: str, data: bytes) -> dict:
        entry = {"type": "file", "path": name, "size": len(data), "oid": blob(data)}
        if len(data) > LARGE:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _file(self, kind: str, name: str, commit: str, file: str) -> None:
        repository = self._open(kind, name, listing=False)
        if repository is None:
            return
        if file in self.hub.status:
            return self._refuse(self.hub.status[file], "EntryNotFound" if self.hub.status[file] == 404 else None)
        if self.hub.busy[file]:
            self.hub.busy[file] -= 1
            return self._refuse(503, None)
        data = repository.commits.get(commit, {}).get(file)
        if data is None:
            return self._refuse(404, "EntryNotFound")
        if len(data) <= LARGE:
            return self._content(file, data, {"ETag": f'"{blob(data)}"', "X-Repo-Commit": commit})
        sha256 = hashlib.sha256(data).hexdigest()
        self.send_response(302)
        for key, value in {
            "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{sha256}?signature=s3cret",
            "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": len(data), "X-Repo-Commit": commit, "Content-Length": 0,
        }.items():  # fmt: skip
            self.send_header(key, str(value))
        self.end_headers()

    def _large(self, sha256: str) -> None:
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for name, data in files.items():
                    if hashlib.sha256(data).hexdigest() == sha256:
                        return self._content(name, data, {"ETag": f'"{sha256}"'})
        self._refuse(404, None)

    def _content(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        hub = self.hub
        size, start, end = len(data), 0, len(data)
        if name in hub.spoil:
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if asked:
            start, end = int(asked[1]), min(size, int(asked[2] or size) + 1)
        if start >= size > 0:
            return self._refuse(416, None)
        self.send_response(206 if asked else 200)
        if asked:
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        for key, value in {**headers, "Content-Length": end - start, "Accept-Ranges": "bytes"}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        breaks = hub.drop[name].pop(0) if hub.drop.get(name) else None
        stop = end if breaks is None else min(end, start + breaks)
        after, event = hub.stall.get(name, (size, None))
        while start < stop:
            if event is not None and start >= after:
                hub.stalled.set()
                event.wait(60)
                event = None
            step = min(_BLOCK, stop - start, after - start if start < after else stop)
            self.wfile.write(data[start : start + step])
            hub.sent[name] += step
            start += step
        if stop < end:
            self.close_connection = True

    def _json(self, value: object, headers: dict[str, str] = {}) -> None:  # noqa: B006  (read only)
        body = json.dumps(value).encode()
        self.send_response(200)
        for key, text in {**headers, "Content-Type": "application/json", "Content-Length": len(body)}.items():
            self.send_header(key, str(text))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str | None, message: str | None = None) -> None:
        self.send_response(status)
        for key, text in {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"}.items():
            if text is not None:
                self.send_header(key, text)
        self.end_headers()


def blob(data: bytes) -> str:
    """Git's id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
