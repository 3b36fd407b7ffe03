"""A round that is cut short anywhere goes on and ends at the same bytes; `make promises` tries every point."""

from __future__ import annotations

import pytest
from crash_points import FAILURES, broken_promises, counts, cut, fail, missed, recorded, undisturbed
from disks import power_cuts, sync_sites

STEP = 47
"""Every so many points are tried here; it divides none of the lengths of what is repeated."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("crashes"))


@pytest.fixture(scope="module")
def record(whole):
    return recorded(whole, "recorded")


@pytest.mark.parametrize("how", FAILURES)
def test_a_failing_operation(whole, how):
    points = range(1 + FAILURES.index(how), whole.operations + 1, STEP)
    wrong = {at: problem for at in points if (problem := fail(whole, how, at))}
    assert len(points) > 4 and not wrong


def test_a_power_cut(whole, record):
    ways = list(power_cuts(0))
    points = range(1, len(record.log), STEP)
    results = list(cut(whole, record.log, points, lambda at: [ways[at // STEP % len(ways)]]))
    assert len(results) > 4 and not [wrong for wrong in results if wrong]


def test_what_is_there_when_a_stage_returns_survives_any_power_cut(record):
    assert sum(operation[0] == "promise" for operation in record.log) == 11
    assert not broken_promises(record.log)


def test_no_file_is_written_under_the_name_that_it_counts_by(record):
    """Else a kill, or a power cut, between two writes leaves a part of it there."""
    written = {path for name, path, *_ in record.log if name in ("create", "write", "truncate")}
    named = {rest[0] for name, _, *rest in record.log if name == "replace"}
    assert len(written) > 20 and len(named) > 20 and not [path for path in sorted(written) if counts(path)]


def test_each_sync_and_each_rename_is_needed(whole, record):
    """Without any one of them the promise above is broken, or the round is not what it was."""
    sites = sync_sites()
    assert len(sites) == 9 and record.sites == sites and record.left == whole.files
    assert [site for site in sorted(sites) if not missed(whole, site)] == []
