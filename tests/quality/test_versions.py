"""The best version of an answer and what revision won, by hand and against a dictionary of whole rows."""

from __future__ import annotations

import math
import random

from nemo_sdg.config import ATTRIBUTES, Select
from nemo_sdg.quality.revision import good_enough, root_of
from nemo_sdg.quality.rules import scalarise
from nemo_sdg.quality.versions import Gain, Versions
from nemo_sdg.records import Scored

LIMITS = Select(minimum={"helpfulness": 3.0}, maximum={"verbosity": 2.0}, weights={"helpfulness": 1.0})


def row(name: str, root: str | None = None, broken: tuple[str, ...] = (), **scores: float) -> Scored:
    values = {attribute: scores.get(attribute, 2.0) for attribute in ATTRIBUTES}
    said = {"root": root, "revises": root} if root else {}
    asked = ({"role": "user", "content": "q"},)
    return Scored(name, "p", 0, asked, "5", provenance=said, extra={"broken": list(broken)}, scores=values)


def seen(*passes: list[Scored]) -> tuple[list[Scored], Versions]:
    """All rows, and what is known of them."""
    versions = Versions(LIMITS)
    for revision, rows in enumerate(passes):
        for one in rows:
            versions.add(one, revision)
    return [one for rows in passes for one in rows], versions


def best(*passes: list[Scored]) -> list[str]:
    rows, versions = seen(*passes)
    return [rows[number].id for number in versions.best()]


def test_the_best_version_of_each_answer_in_the_order_of_the_first():
    first = [row("a", helpfulness=1.0), row("b", helpfulness=3.0), row("c", helpfulness=math.nan)]
    second = [row("a/r1", root="a", helpfulness=2.0), row("b/r1", root="b", helpfulness=3.0), row("c/r1", root="c")]
    assert best(first, second) == ["a/r1", "b", "c/r1"]
    assert best() == [] and best([row("x")]) == ["x"]


def test_a_version_that_passes_goes_before_one_with_a_higher_scalar():
    assert best([row("a", helpfulness=4.0, verbosity=3.0), row("a/r1", root="a", helpfulness=3.0)]) == ["a/r1"]
    first, second = [row("p", broken=("must: x",), helpfulness=4.0)], [row("p/r1", root="p", helpfulness=3.0)]
    assert best(first, second) == ["p/r1"]
    (won,) = seen(first, second)[1].gains(1)
    assert (won.better, won.accepted) == (1, 1)


def test_of_equal_versions_the_first_stays():
    rows = [row("p", helpfulness=2.0), row("p/r1#0", "p", helpfulness=2.0), row("p/r1#1", "p", helpfulness=2.0)]
    assert seen(rows)[1].superseded().tolist() == [False, True, True]
    assert seen([*rows, row("p/r2", "p", helpfulness=2.5)])[1].superseded().tolist() == [True, True, True, False]


def test_what_each_pass_won():
    first = [row("a", helpfulness=1.0), row("b", helpfulness=2.0), row("c", helpfulness=3.5)]
    one = [row("a/r1", root="a", helpfulness=0.5), row("b/r1", root="b", helpfulness=3.0)]
    two = [row("a/r1/r2", root="a", helpfulness=2.5)]
    assert seen(first, one, two)[1].gains(2) == [
        Gain(asked=2, better=1, accepted=1, before=1.5, after=2.0), Gain(1, 1, 0, 1.0, 2.5)
    ]  # fmt: skip
    assert seen(first)[1].gains(2) == [Gain(0, 0, 0, 0.0, 0.0)] * 2


def test_whatever_comes_it_is_what_whole_rows_say():
    """Three waves of two passes, with equal scalars, scores that are no numbers, broken checks and ids that come twice."""
    rng = random.Random(3)
    for _ in range(30):
        versions, waves = Versions(LIMITS), []
        for wave in range(3):
            passes = [[_drawn(rng, f"w{wave}-{n % 7}") for n in range(8)]]
            for number in (1, 2):
                again = [one for one in passes[-1] if rng.random() < 0.6]
                passes.append([_drawn(rng, f"{one.id}/r{number}", root_of(one)) for one in again])
            waves.append(passes)
            for number, rows in enumerate(passes):
                for one in rows:
                    versions.add(one, number)
        rows = [one for passes in waves for rows in passes for one in rows]
        expected = _best(rows)
        assert [rows[number] for number in versions.best()] == list(expected.values())
        ids = {id(one) for one in expected.values()}
        assert versions.superseded().tolist() == [id(one) not in ids for one in rows]
        by_pass = [[one for passes in waves for one in passes[number]] for number in range(3)]
        assert versions.gains(2) == [_gain(by_pass[:number], by_pass[number]) for number in (1, 2)]


def _drawn(rng: random.Random, name: str, root: str | None = None) -> Scored:
    score = rng.choice((1.0, 2.0, 3.0, 3.5, math.nan))
    return row(name, root, rng.choice(((), (), ("must: x",))), helpfulness=score, verbosity=rng.choice((1.0, 3.0)))


def _rank(one: Scored) -> tuple[bool, float]:
    scalar = scalarise(one.scores, LIMITS.weights)
    return good_enough(one, LIMITS), scalar if math.isfinite(scalar) else -math.inf


def _best(rows: list[Scored]) -> dict[str, Scored]:
    found: dict[str, Scored] = {}
    for one in rows:
        if root_of(one) not in found or _rank(one) > _rank(found[root_of(one)]):
            found[root_of(one)] = one
    return found


def _gain(before: list[list[Scored]], revised: list[Scored]) -> Gain:
    roots = {root_of(one) for one in revised}
    earlier = [one for rows in before for one in rows]
    old, new = _best(earlier), _best(earlier + revised)
    means = []
    for there in (old, new):
        scalars = [scalarise(there[root].scores, LIMITS.weights) for root in roots]
        finite = [scalar for scalar in scalars if math.isfinite(scalar)]
        means.append(math.fsum(finite) / len(finite) if finite else 0.0)
    better = sum(new[root].id != old[root].id for root in roots)
    accepted = sum(good_enough(new[root], LIMITS) and not good_enough(old[root], LIMITS) for root in roots)
    return Gain(len(roots), better, accepted, *means)
