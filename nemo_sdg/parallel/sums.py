"""The sums of a large folder, made by all ranks: one rank alone would hash a 340B checkpoint for most of an hour."""

from __future__ import annotations

from pathlib import Path

from nemo_sdg.parallel.agree import on_writer
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.store.files import sha256_of
from nemo_sdg.store.seals import files_of


def sums_over_ranks(folder: Path, mesh: Mesh) -> dict[str, str]:
    """SHA-256 in hex of each file below a folder, by name, on every rank; each rank reads its share of the files.

    The largest files are dealt out first. What a rank does not see as the writer sees it, because its node has another
    disk or an older view of it, is left to the writer. It may take as long as it needs (`Mesh.meet`).
    """

    def listing() -> list[list]:
        sizes = {name: (folder / name).stat().st_size for name in files_of(folder)}
        return sorted(([name, size] for name, size in sizes.items()), key=lambda entry: (-entry[1], entry[0]))

    files = on_writer(mesh, listing)
    mine = {name: size for name, size in files[mesh.rank :: mesh.world_size] if _seen(folder / name, size)}
    found = _sums(folder, list(mine), mesh)
    mesh.meet()
    known: dict[str, str] = {}
    for told in mesh.gather_objects(found):
        known |= told
    rest = [name for name, _ in files if name not in known]
    if rest:
        found = _sums(folder, rest, mesh) if mesh.writer else {}
        mesh.meet()
        known |= mesh.broadcast_object(found)
    return known


def _sums(folder: Path, names: list[str], mesh: Mesh) -> dict[str, str]:
    found = {}
    for name in names:
        found[name] = sha256_of(folder / name)
        mesh.alive()
    return found


def _seen(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size == size
    except OSError:
        return False
