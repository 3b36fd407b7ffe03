"""`download`: a repository of the hub becomes a plain folder, which has its name when it is whole and verified.

Until then it grows in `.NAME.downloading` beside it, at one commit, and the same command continues it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import time
from pathlib import Path

from nemo_sdg.console import Console, size_text
from nemo_sdg.errors import HubError, StoreError
from nemo_sdg.hub.address import Address
from nemo_sdg.store import commit_file, commit_folder

RECORD = "download.json"
SUMS = "SHA256SUMS"
BEGUN = "begun.json"


def download(name: str, folder: Path, revision: str | None, include: list[str], console: Console) -> int:
    """Downloads OWNER/NAME into a new folder and returns the exit status.

    Args:
        revision: a branch, a tag or a commit; by default what the name says after its @, or `main`.
        include: patterns of the names of files; by default all that we can open.
    Raises:
        HubError: the hub refuses, the disk is full, or the bytes are wrong.
        StoreError: the folder exists already and is something else.
    """
    from nemo_sdg.hub.fetching import quiet
    from nemo_sdg.hub.turns import one_at_a_time

    address = Address.parse_name(name)
    if revision is not None:
        address = Address.parse_name(f"{name.partition('@')[0]}@{revision.replace('/', '%2F')}")
    if address.inside:
        way_out = f"name the repository, with --include '{address.inside}*'"
        raise HubError("a path inside a repository cannot be downloaded alone", where=name, way_out=way_out)
    folder = Path(os.path.abspath(folder.expanduser()))
    if not folder.name:
        raise StoreError("this cannot be the name of a new folder", where="DIR", found=str(folder))
    asked = {"repo": address.repo, "kind": address.kind, "revision": address.revision, "include": sorted(include)}
    work = folder.with_name(f".{folder.name}.downloading")
    if _is_there(folder, asked, console):
        return 0
    with quiet(), one_at_a_time(work / "lock", console, address.label) as tell:
        done = False
        try:
            if not _is_there(folder, asked, console):  # the one we waited for may have made it
                _fill(folder, work, asked, address, console, tell)
            done = True
        finally:
            if done or not _brought_anything(work):
                shutil.rmtree(work, ignore_errors=True)
    return 0


def _fill(folder: Path, work: Path, asked: dict, address: Address, console: Console, tell) -> None:  # noqa: ANN001
    from nemo_sdg.hub.fetching import fetch
    from nemo_sdg.hub.listing import look_up
    from nemo_sdg.hub.places import Folder
    from nemo_sdg.hub.refusals import refusal

    begun = _begun(work, asked, folder)
    if begun is None:
        shutil.rmtree(work / "files", ignore_errors=True)  # nobody can say what it is
    else:  # the branch may have moved since
        address = Address(address.repo, begun["found"], begun["commit"])
        console.say(f"continuing {asked['repo']} at commit {begun['commit']}")
    with console.progress(f"asking the hub for {address.label}"):
        listing = look_up(address).only(asked["include"])
    place = Folder(work / "files", listing)
    count, kind = len(listing.files), listing.address.kind
    console.say(f"{kind} {asked['repo']} at commit {listing.commit}: {count} files, {size_text(listing.size)}")
    if listing.left_out:
        some = f"{listing.left_out[0]}{' and more' if len(listing.left_out) > 1 else ''}"
        console.say(f"left out, because nothing here opens them: {len(listing.left_out)} files ({some})")
    commit_file(work / BEGUN, _json({**asked, "found": kind, "commit": listing.commit}))
    sums = fetch(place, console, tell)
    record = {
        "repo": asked["repo"], "kind": kind, "revision": asked["revision"], "commit": listing.commit,
        "include": asked["include"], "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": [{"name": f.name, "size": f.size, "sha256": sums[f.name], "blob": f.blob} for f in listing.files],
        "left_out": list(listing.left_out),
    }  # fmt: skip
    try:
        shutil.rmtree(place.root / ".cache", ignore_errors=True)
        for file in [path for path in place.root.rglob("*") if path.is_file() or path.is_symlink()]:
            if file.relative_to(place.root).as_posix() not in (*sums, RECORD, SUMS):
                file.unlink()  # the hub does not list it, so nobody has verified it
        commit_file(place.root / RECORD, _json(record))
        if SUMS not in sums:
            sums[RECORD] = hashlib.sha256(_json(record)).hexdigest()
            commit_file(place.root / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise refusal(error, address, folder) from error
    commit_folder(place.root, folder)
    console.say(f"every byte was verified; {folder} holds {asked['repo']} at commit {listing.commit}")
    if kind == "model":
        console.say(f"next: nemo-sdg verify {shlex.quote(str(folder))}")


def _is_there(folder: Path, asked: dict, console: Console) -> bool:
    """Whether an earlier call has finished this. Raises StoreError if the folder is something else."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return False
    record = _read(folder / RECORD)
    if (
        record is None
        or any(record.get(key) != asked[key] for key in ("repo", "include"))
        or (
            asked["revision"] not in (record.get("revision"), record.get("commit"))
            or asked["kind"] not in (None, record.get("kind"))
        )
    ):
        found = "something else" if record is None else _named(record)
        raise StoreError(
            "the folder is there already", where=folder, found=found, expected=_named(asked), way_out="choose a new folder"
        )  # fmt: skip
    for file in record.get("files", []):
        path = folder / file["name"]
        if not path.is_file() or path.stat().st_size != file["size"]:
            raise StoreError(
                "a file is missing or cut short in what was downloaded", where=path, expected=f"{file['size']} bytes",
                way_out=f"delete {folder} and download it again",
            )  # fmt: skip
    console.say(f"nothing to do: {folder} holds {record['repo']} at commit {record['commit']}")
    return True


def _brought_anything(work: Path) -> bool:
    """Whether there is something that a rerun could go on with."""
    for path in work.glob("files/**/*"):
        own = ".cache" in path.relative_to(work).parts and not path.name.endswith(".incomplete")
        if not own and path.is_file() and path.stat().st_size:
            return True
    return False


def _begun(work: Path, asked: dict, folder: Path) -> dict | None:
    """What an earlier call has begun here. Raises StoreError if that was something else."""
    begun = _read(work / BEGUN)
    if begun is None:
        return None
    if any(begun.get(key) != value for key, value in asked.items()):
        raise StoreError(
            "the download of something else was begun for this folder", where=folder,
            found=_named(begun), expected=_named(asked),
            way_out=f"delete {work}, or choose another folder",
        )  # fmt: skip
    return begun


def _named(asked: dict) -> str:
    """A download in words."""
    only = f" with --include {' '.join(asked['include'])}" if asked.get("include") else ""
    return f"{asked.get('repo')}@{asked.get('revision')}{only}"


def _read(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
