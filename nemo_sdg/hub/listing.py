"""What a repository holds at a commit: names, sizes and hashes, before any file is fetched."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from nemo_sdg.errors import HubError
from nemo_sdg.hub.address import Address, is_commit, is_safe
from nemo_sdg.hub.refusals import refusal

LEFT_OUT = (
    "*_extra_state*", "*.pt", "*.pth", "*.bin", "*.ckpt", "*.pkl", "*.pickle", "*.joblib",  # pickles: common.pt is one
    "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.gguf", "*.tflite",
)  # fmt: skip
"""What we never open, and so never download: pickles, and weights in formats that we do not read."""
OURS = ("download.json", ".cache/*")
"""Names in a downloaded folder that are ours or huggingface_hub's; a repository's files of these names are left out."""
_MANY = 50_000
"""huggingface_hub does not trust the short listing beyond this number of files."""
_BLOCK = 4 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository as the hub announces it."""

    name: str
    size: int
    sha256: str | None
    """Of the content, where the hub keeps it in its large-file storage."""
    blob: str
    """Git's id of the content (SHA-1 with git's header); of the pointer, for a large file."""

    @property
    def etag(self) -> str:
        """What the hub and its cache call the content."""
        return self.sha256 or self.blob

    def hashed(self, path: Path) -> str | None:
        """The SHA-256 of a file on disk, if it holds this very content; else None."""
        whole, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        try:
            if path.stat().st_size != self.size:
                return None
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    whole.update(block)
                    if self.sha256 is None:
                        git.update(block)
        except FileNotFoundError:
            return None
        good = whole.hexdigest() == self.sha256 if self.sha256 else git.hexdigest() == self.blob
        return whole.hexdigest() if good else None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    address: Address
    commit: str
    files: tuple[RemoteFile, ...]
    """Those that we would download."""
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def only(self, wanted: Iterable[str] = ()) -> Listing:
        """The files under the address, and of these the ones that match a pattern, if there is any.

        Raises:
            HubError: nothing is left.
        """
        patterns = tuple(wanted)

        def take(name: str) -> bool:
            return self.address.covers(name) and (not patterns or any(fnmatchcase(name, p) for p in patterns))

        files = tuple(file for file in self.files if take(file.name))
        left_out = tuple(name for name in self.left_out if take(name))
        if not files:
            raise _nothing(self, left_out, patterns)
        return Listing(self.address, self.commit, files, left_out)


def look_up(address: Address) -> Listing:
    """Asks the hub which commit the revision is, and what the repository holds there.

    Where the kind was not said, a model is looked for first and a dataset after it.

    Raises:
        HubError: the hub says no, cannot be reached, or says what cannot be.
    """
    if address.kind is not None:
        return _ask(address)
    model = Address(address.repo, "model", address.revision, address.inside)
    try:
        return _ask(model)
    except HubError as error:
        if not _may_be_another(error.__cause__):
            raise
        try:
            return _ask(Address(address.repo, "dataset", address.revision, address.inside))
        except HubError:
            raise error from error.__cause__


def _may_be_another(error: BaseException | None) -> bool:
    """Without a token the hub says 401 of what is not there, so that nobody learns what is private."""
    unknown = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 404)
    return unknown and (isinstance(error, RepositoryNotFoundError) or type(error) is HfHubHTTPError)


def _ask(address: Address) -> Listing:
    api = HfApi(library_name="nemo-sdg")
    what = {"repo_type": address.kind, "revision": address.revision}
    try:
        info = api.repo_info(address.repo, files_metadata=True, timeout=30, **what)
        if not is_commit(info.sha):
            raise KeyError("sha")
        found = info.siblings or ()
        if not found or len(found) > _MANY or any(s.size is None or s.blob_id is None for s in found):
            what["revision"] = info.sha
            found = [f for f in api.list_repo_tree(address.repo, recursive=True, **what) if hasattr(f, "size")]
        every = [_file(address, entry) for entry in found]
    except HubError:
        raise
    except Exception as error:
        raise refusal(error, address) from error
    every.sort(key=lambda file: file.name)
    out = {file.name for file in every if _is_left_out(file.name)}
    kept = tuple(file for file in every if file.name not in out)
    return Listing(address, info.sha, kept, tuple(sorted(out)))


def _file(address: Address, entry: object) -> RemoteFile:
    """Raises HubError for a name that leads elsewhere, and for a hash or a size that is none."""
    name, size, sha256 = entry.rfilename, entry.size, entry.lfs.sha256 if entry.lfs else None
    if not is_safe(name):
        raise HubError("the repository names a file that would lie elsewhere", where=address.label, found=repr(name))
    hashes = sha256 is None or re.fullmatch("[0-9a-f]{64}", str(sha256))
    if type(size) is not int or size < 0 or not is_commit(entry.blob_id) or not hashes:
        raise HubError("the hub announces no size or no hash of a file", where=address.label, found=name)
    return RemoteFile(name, size, sha256, entry.blob_id)


def _is_left_out(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (*LEFT_OUT, *OURS))


def _nothing(listing: Listing, left_out: tuple[str, ...], patterns: tuple[str, ...]) -> HubError:
    address = listing.address
    if left_out:
        found = ", ".join(_some(left_out))
        way_out = "choose a revision with safetensors or the released layout; pickles are never opened"
        return HubError("there is nothing that could be opened", where=address.label, found=found, way_out=way_out)
    asked = ", ".join(patterns) or address.inside or "any file"
    found = ", ".join(_some([file.name for file in listing.files])) or "no file"
    return HubError("the repository has no such file", where=address.label, found=found, expected=asked)


def _some(names: Iterable[str]) -> Iterator[str]:
    """The first few, for a message."""
    for number, name in enumerate(names):
        if number == 4:
            yield "..."
            return
        yield name
