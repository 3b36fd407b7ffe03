"""Bar 2: every operation of a round on the disk, each with exit, EIO, ENOSPC and power cuts."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_points import FAILURES, broken_promises, cut, fail, missed, recorded, undisturbed
from disks import power_cuts, sync_sites

from nemo_sdg.store import disk, files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("crashes"))


def test_every_operation(whole):
    points, wrong = range(1, whole.operations + 1), []
    for how in FAILURES:
        wrong += [f"{how} at {at}: {problem}" for at in points if (problem := fail(whole, how, at))]
    total = len(points) * len(FAILURES)
    print(f"\nBAR 2: {total - len(wrong)}/{total} operations cut short by exit, EIO or ENOSPC / {total}/{total}")
    assert len(points) > 150 and not wrong, "\n".join(wrong[:20])


def test_every_power_cut(whole):
    log = recorded(whole, "recorded").log
    points = range(1, sum(operation[0] != "promise" for operation in log) + 1)
    results = list(cut(whole, log, points, lambda at: power_cuts(0)))
    wrong, total = [result for result in results if result], len(results)
    print(f"\nBAR 2: {total - len(wrong)}/{total} power cuts after {len(points)} operations / {total}/{total}")
    assert total == len(points) * len(power_cuts(0)) and not wrong, "\n".join(wrong[:20])


def test_every_sync_and_rename_is_needed(whole):
    sites = sync_sites()
    noticed = sum(missed(whole, site) for site in sites)
    print(f"\nBAR 2: {noticed}/{len(sites)} syncs and renames are missed when taken out / {len(sites)}/{len(sites)}")
    assert noticed == len(sites) >= 9


def renamed_before_it_is_synced(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp-")
    files.make_folder(path.parent)
    files.write_file(temporary, data)
    disk.fs.replace(temporary, path)
    files.sync(path)
    files.sync(path.parent)


def written_in_place(path: Path, data: bytes) -> None:
    files.make_folder(path.parent)
    files.write_file(path, data)
    files.sync(path)
    files.sync(path.parent)


@pytest.mark.parametrize("habit", [renamed_before_it_is_synced, written_in_place])
def test_a_wrong_order_is_noticed(whole, habit, monkeypatch):
    """Nothing is missing here, so what is promised is kept; in between a torn file stands under a good name."""
    for module in ("seals", "stage"):
        monkeypatch.setattr(f"nemo_sdg.store.{module}.commit_file", habit)
    log = recorded(whole, habit.__name__).log
    monkeypatch.undo()
    assert not broken_promises(log)
    points = range(1, sum(operation[0] != "promise" for operation in log), 5)
    results = cut(whole, log, points, lambda at: ["names alone", "halves"])
    assert any(results), "a torn file under a good name was taken for whole, or never stood there"
