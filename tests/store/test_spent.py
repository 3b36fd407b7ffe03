"""The hours of a round go on over restarts and kills."""

from __future__ import annotations

import pytest

from nemo_sdg.errors import StoreError
from nemo_sdg.store.spent import EVERY_S, Spent


def test_the_clock_goes_on_where_the_last_start_left_it(tmp_path):
    now = [0.0]
    first = Spent(tmp_path, lambda: now[0])
    now[0] = EVERY_S - 1
    first.note()
    assert not (tmp_path / "spent.json").exists(), "not for every row"
    now[0] = 1800.0
    first.note()
    now[0] += EVERY_S - 1
    first.note()  # what comes now is lost by the kill, and no more
    second = Spent(tmp_path, lambda: now[0])
    assert second.hours == 0.5
    now[0] += 3600
    second.note(now=True)
    assert Spent(tmp_path, lambda: now[0]).hours == second.hours == 1.5


def test_an_altered_clock_is_told(tmp_path):
    Spent(tmp_path).note(now=True)
    (tmp_path / "spent.json").write_text((tmp_path / "spent.json").read_text().replace("hours", "hour"))
    with pytest.raises(StoreError, match="spent.json: the file was torn or altered"):
        Spent(tmp_path)
