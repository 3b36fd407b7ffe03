"""Which of a prompt's scored responses become preference pairs.

The order of judgement is that of the Nemotron-4 340B report (section 3.2.3): the right answer or a verifier first, then
the reward model, which must see a margin between the two.
"""

from __future__ import annotations

import math
from typing import Iterator, Sequence, Tuple

from nemo_sdg.config.selection import Select
from nemo_sdg.config.settings import Preference
from nemo_sdg.quality.answers import verdict
from nemo_sdg.quality.rules import complete, may_teach, usable
from nemo_sdg.records import Decision, Pair

VERIFIER, REWARD = "verifier", "reward"
"""Judges of a pair: who told the two responses apart."""
Judged = Tuple[str, float, Decision, Decision]
"""(judge, margin of the scalars, better, worse)"""
_RANK = {False: 0, None: 1, True: 2}


def pairs_of(rows: Sequence[Decision], settings: Preference, select: Select) -> tuple[list[Pair], str | None]:
    """The pairs of one prompt, at most `per_prompt`, and the reason where there is none.

    A response that is known to be wrong is never chosen, one that is known to be right never rejected for another that
    is not. Where one is known to be right and the other wrong, that decides, whatever their scores; else the scalars
    must differ by the margin. Verified pairs come first, then the larger margin; a response is in one pair at most.
    """
    answers = [row for row in rows if may_teach(row.reason) and _can_be_learned(row, select)]
    if len(answers) < 2:
        return [], "fewer than two usable responses"
    rank = {row.id: _RANK[verdict(row.response, row.extra)] for row in answers}
    if not any(rank.values()):
        return [], "no right response"
    if settings.selected and not any(row.kept and rank[row.id] for row in answers):
        return [], "no selected response"
    told = [one for one in _in_order(answers, rank, settings) if one[0] == VERIFIER or one[1] > 0]
    if not told:
        return [], "tie"
    enough = [one for one in told if one[0] == VERIFIER or one[1] >= settings.margin]
    if not enough:
        return [], f"margin below {settings.margin:g}"
    pairs: list[Pair] = []
    used: set[str] = set()
    for judge, _, better, worse in sorted(enough, key=_best_first):
        if len(pairs) < settings.per_prompt and not {better.id, worse.id} & used:
            used |= {better.id, worse.id}
            pairs.append(_pair(better, worse, judge))
    return pairs, None


def _can_be_learned(row: Decision, select: Select) -> bool:
    return math.isfinite(row.scalar) and not usable(row.response) and not complete(row.finish_reason, select)


def _in_order(answers: Sequence[Decision], rank: dict[str, int], settings: Preference) -> Iterator[Judged]:
    """Every two responses in the order in which they may stand."""
    for better in answers:
        if rank[better.id] and (better.kept or not settings.selected):
            for worse in answers:
                if better.response != worse.response and rank[better.id] >= rank[worse.id]:
                    verified = (rank[better.id], rank[worse.id]) == (_RANK[True], _RANK[False])
                    yield VERIFIER if verified else REWARD, better.scalar - worse.scalar, better, worse


def _best_first(one: Judged) -> tuple:
    """No two are equal, so that the outcome never depends on the order of arrival."""
    judge, margin, better, worse = one
    return judge != VERIFIER, -margin, better.sample, worse.sample, better.id, worse.id


def _pair(better: Decision, worse: Decision, judge: str) -> Pair:
    return Pair(
        id=f"{better.id}>{worse.id}",
        messages=better.messages,
        chosen=better.response,
        rejected=worse.response,
        score_chosen=better.scalar,
        score_rejected=worse.scalar,
        judge=judge,
        scores_chosen=better.scores,
        scores_rejected=worse.scores,
        provenance={"chosen": {"id": better.id, **better.provenance}, "rejected": {"id": worse.id, **worse.provenance}},
    )
