"""Where the files of a listing go, and what of them is there already: a plain folder, or the Hugging Face cache."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.file_download import repo_folder_name

from nemo_sdg.hub.listing import Listing, RemoteFile


class Place(ABC):
    """Files of one listing on one disk."""

    def __init__(self, root: Path, listing: Listing) -> None:
        self.root, self.listing = root, listing

    @abstractmethod
    def path(self, file: RemoteFile) -> Path:
        """Where the file is, or will be."""

    @abstractmethod
    def partial(self, file: RemoteFile) -> Path | None:
        """What huggingface_hub has begun of it, and will go on with."""

    @abstractmethod
    def get(self, file: RemoteFile) -> None:
        """Downloads it, from where an earlier attempt stopped. Raises what huggingface_hub and requests raise."""

    def forget(self, file: RemoteFile) -> None:
        """Takes away what is there of it, whole or begun."""
        partial = self.partial(file)
        for path in (self.path(file), partial):
            if path is not None:
                path.unlink(missing_ok=True)

    def present(self, file: RemoteFile) -> int:
        """Bytes of it that are on the disk, right or wrong."""
        for path in (self.path(file), self.partial(file)):
            with contextlib.suppress(FileNotFoundError):
                if path is not None:
                    return path.stat().st_size
        return 0

    def missing_bytes(self) -> int:
        """Bytes that the disk must still take."""
        return sum(max(0, file.size - self.present(file)) for file in self.listing.files)

    def _arguments(self, file: RemoteFile) -> dict:
        address = self.listing.address
        return {"repo_id": address.repo, "repo_type": address.kind, "revision": self.listing.commit,
                "filename": file.name, "library_name": "nemo-sdg"}  # fmt: skip


class Folder(Place):
    """A plain folder; while it is filled, huggingface_hub keeps what it has begun below `.cache/`."""

    def path(self, file: RemoteFile) -> Path:
        return self.root / file.name

    def partial(self, file: RemoteFile) -> Path | None:
        beside = (self.root / ".cache/huggingface/download" / file.name).parent
        return next(beside.glob(f"*.{file.etag}.incomplete"), None) if beside.is_dir() else None

    def get(self, file: RemoteFile) -> None:
        hf_hub_download(**self._arguments(file), local_dir=self.root)


class Cache(Place):
    """The cache that huggingface_hub's users share: one copy of each content, and links to it by name and commit."""

    def __init__(self, cache: Path, listing: Listing) -> None:
        super().__init__(repository(cache, listing.address.repo, listing.address.kind), listing)
        self._cache = cache

    def path(self, file: RemoteFile) -> Path:
        return self.root / "snapshots" / self.listing.commit / file.name

    def partial(self, file: RemoteFile) -> Path | None:
        return self.root / "blobs" / f"{file.etag}.incomplete"

    def get(self, file: RemoteFile) -> None:
        hf_hub_download(**self._arguments(file), cache_dir=self._cache)

    def forget(self, file: RemoteFile) -> None:
        super().forget(file)
        (self.root / "blobs" / file.etag).unlink(missing_ok=True)

    def present(self, file: RemoteFile) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self.root / "blobs" / file.etag).stat().st_size
        return super().present(file)


def repository(cache: Path, repo: str, kind: str) -> Path:
    """A repository's folder in the cache: models--OWNER--NAME."""
    return cache / repo_folder_name(repo_id=repo, repo_type=kind)
