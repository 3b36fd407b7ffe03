"""Conversations in packs: each once, whole, and what they share only once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemo_sdg.engine.packing import _cuts, pack

TEXT = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def unpacked(packs):
    return {index: [p.token_ids[place] for place in p.places(leaf)] for p in packs for index, leaf in p.leaves}


@given(st.lists(st.tuples(st.integers(0, 3), TEXT), min_size=1, max_size=20), st.integers(1, 600))
def test_every_conversation_is_in_one_pack_and_whole(drawn, limit):
    begins = [[], [1] * 40, [1] * 40 + [2] * 50, [3] * 90]
    conversations = [begins[begin] + text for begin, text in drawn]
    packs = list(pack(conversations, limit))
    assert unpacked(packs) == dict(enumerate(conversations))
    assert sum(len(p.leaves) for p in packs) == len(conversations)
    for p in packs:
        assert len(p.token_ids) <= limit or len(p.leaves) == 1
        assert len(p.token_ids) == sum(segment.count for segment in p.segments), "nothing is padded"
        for segment in p.segments:
            parent = p.segments[segment.parent] if segment.parent >= 0 else None
            assert segment.start == (parent.start + parent.count if parent else 0)


def test_a_shared_prompt_is_computed_once_at_every_depth():
    system, prompts = [5] * 100, [[6] * 70, [7] * 80]
    conversations = [system + prompts[i % 2] + [10 + i] * 20 for i in range(8)]
    (made,) = pack(conversations, 10_000)
    assert len(made.token_ids) == 100 + 70 + 80 + 8 * 20
    assert unpacked([made]) == dict(enumerate(conversations))


def test_a_short_common_beginning_is_not_cut_off():
    (made,) = pack([[1] * 10 + [2] * 5, [1] * 10 + [3] * 5], 100)
    assert len(made.segments) == 2


def test_a_conversation_that_another_one_continues():
    (made,) = pack([[1] * 50, [1] * 50 + [2] * 30, [1] * 50], 1000)
    assert len(made.token_ids) == 80 and unpacked([made])[0] == [1] * 50


def test_what_does_not_fit_with_the_shared_part_begins_a_new_pack():
    packs = list(pack([[1] * 100 + [i] * 50 for i in range(2, 6)], 210))
    assert [len(p.token_ids) for p in packs] == [200, 200]


def test_a_beginning_that_very_many_share_takes_no_quadratic_time():
    looked = 0

    class Counted(list):
        def __getitem__(self, place):
            nonlocal looked
            got = list.__getitem__(self, place)
            looked += len(got) if isinstance(place, slice) else 1
            return got

    common = Counted([40] * 1999)
    assert _cuts([60] * 2000, common) == [[40, 60]] * 2000
    assert looked < 10 * 2000
