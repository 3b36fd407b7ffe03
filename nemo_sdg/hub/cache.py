"""`hf://` becomes a path in the Hugging Face cache (HF_HOME), downloaded first if it is not there.

What the cache holds is not asked for again: a commit never changes, and a branch stays at the commit that the
cache's `refs/` names. So all ranks of a run, and the run that continues it, see the same files. A record beside
the snapshots says which parts of a commit are there, whole and verified.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from nemo_sdg.console import Console
from nemo_sdg.hub.address import Address, is_commit
from nemo_sdg.hub.fetching import fetch, quiet
from nemo_sdg.hub.listing import Listing, look_up
from nemo_sdg.hub.places import Cache, repository
from nemo_sdg.hub.refusals import refusal
from nemo_sdg.hub.turns import one_at_a_time

RECORDS = ".nemo_sdg"
"""What we note of a repository, in its folder of the cache."""


def local_path(address: Address, console: Console | None = None) -> Path:
    """The folder or file that an address means, on this disk.

    One process of a file system downloads; the others wait for it and then find the files.

    Raises:
        HubError: it is not in the cache and cannot be downloaded.
    """
    here = find(address)
    if here is None and constants.HF_HUB_OFFLINE:
        # Another tool may have put it there; what it left out shows when the file is opened.
        here = find(address, recorded=False)
    if here is not None:
        return here
    if constants.HF_HUB_OFFLINE:
        raise refusal(OfflineModeIsEnabled(), address)
    console = console or console_of_this_rank()
    with one_at_a_time(lock_of(address), console, address.label) as tell:
        # It may have come while we waited.
        return find(address) or _download(folder_of(address), address, console, tell)


def commit(address: Address) -> str | None:
    """The commit that an address means in the cache; None if the cache does not know it."""
    if address.commit is not None:
        return address.commit
    try:
        found = (folder_of(address) / "refs" / address.revision).read_text().strip()
    except OSError:
        return None
    return found if is_commit(found) else None


def folder_of(address: Address) -> Path:
    """The repository's folder in the cache."""
    return repository(Path(constants.HF_HUB_CACHE), address.repo, address.kind)


def lock_of(address: Address) -> Path:
    """The file that says whose turn it is with this repository."""
    return Path(constants.HF_HUB_CACHE, ".locks", folder_of(address).name, "nemo-sdg.lock")


def console_of_this_rank() -> Console:
    return Console(speaks=os.environ.get("RANK", "0") == "0")


def find(address: Address, *, recorded: bool = True) -> Path | None:
    """The path in the cache, if it is there and, where that is asked, recorded as whole."""
    known, folder = commit(address), folder_of(address)
    if known is None:
        return None
    path = folder / "snapshots" / known / address.inside
    if not path.exists():
        return None
    return path if not recorded or any(_covers(part, address.inside) for part in _parts(folder, known)) else None


def _covers(part: str, inside: str) -> bool:
    return part in ("", inside) or inside.startswith(part + "/")


def _parts(folder: Path, commit: str) -> list[str]:
    """The paths inside that are whole and verified at a commit; an empty one is all of the repository."""
    try:
        parts = json.loads((folder / RECORDS / f"{commit}.json").read_bytes())["parts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []


def _download(folder: Path, address: Address, console: Console, tell) -> Path:  # noqa: ANN001  (a function of text)
    with quiet(), console.progress(f"asking the hub for {address.label}"):
        listing = look_up(address).only()
    fetch(Cache(Path(constants.HF_HUB_CACHE), listing), console, tell)
    try:
        _record(folder, address, listing)
    except OSError as error:
        raise refusal(error, address) from error
    return folder / "snapshots" / listing.commit / address.inside


def _record(folder: Path, address: Address, listing: Listing) -> None:
    """The branch last: whoever finds it finds the files that it leads to."""
    parts = sorted({*_parts(folder, listing.commit), address.inside})
    if "" in parts:
        parts = [""]
    text = json.dumps({"repo": address.repo, "commit": listing.commit, "parts": parts}) + "\n"
    _replace(folder / RECORDS / f"{listing.commit}.json", text)
    if address.revision != listing.commit:
        _replace(folder / "refs" / address.revision, listing.commit)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.parent.parent / f".{path.name}.making-{os.getpid()}"  # not in refs/, where each file is a branch
    making.write_text(text)
    os.replace(making, path)
