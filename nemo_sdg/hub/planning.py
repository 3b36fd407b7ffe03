"""What `plan` needs of a repository, without its weights: the small files, and headers with holes for the rest.

A file of the released layout that holds weights is simply not there. A safetensors file is there with its header
and its size, but has no bytes: a hole, which takes no room. Nothing but `plan` is ever given this folder.
"""

from __future__ import annotations

import json
import os
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled

from nemo_sdg.console import Console, size_text
from nemo_sdg.errors import HubError
from nemo_sdg.hub.address import Address
from nemo_sdg.hub.cache import RECORDS, console_of_this_rank, find, folder_of, lock_of
from nemo_sdg.hub.fetching import fetch, quiet
from nemo_sdg.hub.listing import Listing, RemoteFile, look_up
from nemo_sdg.hub.places import Folder
from nemo_sdg.hub.refusals import refusal
from nemo_sdg.hub.turns import one_at_a_time

_SMALL = ("*.json", "*.yaml", "*.model", "*.zarray", "*.metadata", "*.jinja")
_LARGEST = 64 << 20
"""Bytes; the largest index of a known model has 3 MB."""


@lru_cache
def metadata_path(address: Address, console: Console | None = None) -> Path:
    """The folder that an address means: with weights if the cache holds them, else made for planning only.

    Asked once in a process: a plan has the same model in several roles.

    Raises:
        HubError: the hub does not give the metadata.
    """
    here = find(address)
    if here is not None:
        return here
    if constants.HF_HUB_OFFLINE:
        raise refusal(OfflineModeIsEnabled(), address)
    console = console or console_of_this_rank()
    with one_at_a_time(lock_of(address), console, address.label) as tell:
        with quiet(), console.progress(f"asking the hub for {address.label}"):
            listing = look_up(address).only()
        place = Folder(folder_of(address) / RECORDS / "metadata" / listing.commit, _small(listing))
        fetch(place, console, tell)
        weights = [file for file in listing.files if file.name.endswith(".safetensors")]
        with quiet(), console.progress("reading headers", len(weights)) as progress:
            for file in weights:
                _header(place, file)
                progress.advance()
        console.say(
            f"{address.label}: planned from its metadata; to run it, {size_text(listing.size)} will be downloaded"
        )
    return place.root / address.inside


def _small(listing: Listing) -> Listing:
    files = [f for f in listing.files if f.size <= _LARGEST and any(fnmatchcase(f.name, p) for p in _SMALL)]
    if not files:
        found = ", ".join(file.name for file in listing.files[:4])
        raise HubError(
            "the repository says nothing of its weights that could be read alone", where=listing.address.label,
            found=found, expected="a model_config.yaml or a config.json", way_out="download it first",
        )  # fmt: skip
    return Listing(listing.address, listing.commit, tuple(files), listing.left_out)


def _header(place: Folder, file: RemoteFile) -> None:
    """A safetensors file with its true header and size, and a hole where the tensors are."""
    path, address = place.path(file), place.listing.address
    if path.exists() and path.stat().st_size == file.size:
        return
    try:
        what = {"filename": file.name, "repo_type": address.kind, "revision": place.listing.commit}
        header = HfApi(library_name="nemo-sdg").parse_safetensors_file_metadata(address.repo, **what)
        entries = {
            name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
            for name, tensor in header.tensors.items()
        }
        # The library gives the header parsed; padded to its length in the file, the tensors lie where they lie there.
        length = file.size - 8 - max((tensor.data_offsets[1] for tensor in header.tensors.values()), default=0)
        text = json.dumps(entries, separators=(",", ":")).encode().ljust(max(0, length))
        if len(text) != length:
            raise ValueError("the header is longer than the file leaves room for")
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_name(f".{path.name}.making")
        with open(making, "wb") as out:
            out.write(length.to_bytes(8, "little") + text)
            out.truncate(file.size)
        os.replace(making, path)
    except Exception as error:
        raise refusal(error, address, f"{address.label}/{file.name}") from error
