"""A folder of files: what lies inside, and by which way out of it nothing is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_sdg.checkpoints.files import Files
from nemo_sdg.errors import CheckpointError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/weights").mkdir(parents=True)
    (tmp_path / "root/weights/a").write_text("a")
    (tmp_path / "rootless").mkdir()
    (tmp_path / "rootless/a").write_text("no business of ours")
    return tmp_path / "root"


def test_a_link_inside_is_followed(root):
    (root / "b").symlink_to("weights/a")
    (root / "more").symlink_to("weights")
    assert [Files(root).find(name).size for name in ("weights/a", "b", "more/a")] == [1, 1, 1]


@pytest.mark.parametrize("name", ["..", "../rootless", "weights/../..", "more", "more/a", "weights/out", "weights/../more/a"])
def test_no_way_out(root, name):
    """Each also behind a file of the same folder that lies inside."""
    (root / "more").symlink_to("../rootless")
    (root / "weights/out").symlink_to("../../rootless/a")
    files = Files(root)
    assert files.find("weights/a").size == 1
    with pytest.raises(CheckpointError, match="leads out"):
        if (root / name).is_dir():
            files.entries(name)
        else:
            files.find(name)


def test_a_snapshot_of_the_hub_has_its_files_beside_it(tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for folder in ("blobs", "blobsy"):
        (snapshot.parents[1] / folder).mkdir()
        (snapshot.parents[1] / folder / "x").write_text("x")
        (snapshot / folder).symlink_to(f"../../{folder}/x")
    assert Files(snapshot).find("blobs").size == 1
    with pytest.raises(CheckpointError, match="leads out"):
        Files(snapshot).find("blobsy")


def test_a_folder_that_was_looked_at_may_have_become_another(root, monkeypatch):
    files = Files(root)
    assert files.entries("later") == {} and files.find("weights/a").size == 1
    (root / "weights").rename(root / "before")
    for name in ("weights", "later"):
        (root / name).symlink_to("../rootless")
        with pytest.raises(CheckpointError, match="leads out"):
            files.open(root / name / "a")
    monkeypatch.chdir(root)
    files = Files(Path("before"))
    assert files.find("a").size == 1
    (root.parent / "rootless/before").mkdir()
    (root.parent / "rootless/before/a").touch()
    monkeypatch.chdir(root.parent / "rootless")
    with pytest.raises(CheckpointError, match="leads out"):
        files.open(Path("before/a"))


def test_all_of_a_machine_may_be_a_checkpoint(root):
    assert Files(Path("/")).find(str(root / "weights/a")[1:]).size == 1
