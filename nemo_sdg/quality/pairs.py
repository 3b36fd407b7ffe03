"""Which of a prompt's scored responses become preference pairs.

The order of judgement is that of the Nemotron-4 340B report (section 3.2.3): the right answer or a verifier first, then
the reward model, which must see a margin between the two, or a language model that is shown both in both orders.
"""

from __future__ import annotations

import math
from typing import Iterable, Iterator, Mapping, Sequence, Tuple

from nemo_sdg.config.selection import Select
from nemo_sdg.config.training import Preference
from nemo_sdg.quality.answers import verdict
from nemo_sdg.quality.rules import complete, may_teach, usable
from nemo_sdg.records import Decision, Pair

VERIFIER, REWARD, LLM = "verifier", "reward", "llm"
"""Judges of a pair: who told the two responses apart."""
Judged = Tuple[str, float, Decision, Decision]
"""(judge, margin of the scalars, better, worse)"""
Compared = Mapping[str, Tuple["str | None", "str | None"]]
"""Name of two responses -> (id of the better one, why there is none): what a language model has said."""
TIE, INCONSISTENT, SILENT = "the judge sees a tie", "the judge contradicts itself", "the judge does not say"
_NOT_ALLOWED = "the judge prefers a response that was not selected, or is not right"
_RANK = {False: 0, None: 1, True: 2}


def pairs_of(
    rows: Sequence[Decision], settings: Preference, select: Select, compared: Compared | None = None
) -> tuple[list[Pair], str | None]:
    """The pairs of one prompt, at most `per_prompt`, and the reason where there is none.

    A response that is known to be wrong is never chosen, one that is known to be right never rejected for another that
    is not. Where one is known to be right and the other wrong, that decides, whatever their scores; else the scalars
    must differ by the margin. Verified pairs come first, then the larger margin; a response is in one pair at most.

    Args:
        compared: what the judge has said of each of the `candidates`, where `preference.judge` is llm.
    """
    answers, rank, reason = _usable(rows, settings, select)
    if reason is not None:
        return [], reason
    if settings.judge == LLM:
        assert compared is not None, "the judge was asked before"
        return _compared_pairs(answers, rank, settings, compared)
    told = [one for one in _in_order(answers, rank, settings) if one[0] == VERIFIER or one[1] > 0]
    if not told:
        return [], "tie"
    enough = [one for one in told if one[0] == VERIFIER or one[1] >= settings.margin]
    if not enough:
        return [], f"margin below {settings.margin:g}"
    return [_pair(better, worse, judge) for judge, _, better, worse in _apart(enough, settings.per_prompt)], None


def candidates(
    rows: Sequence[Decision], settings: Preference, select: Select
) -> list[tuple[Decision, Decision]]:
    """The responses to one prompt that a language model is to compare, two by two, the higher scalar first.

    As many as there may be pairs, less those that a verifier decides. Of every two one at least may be chosen, if it is
    found better. Those that differ most come first; a response is compared once at most.
    """
    answers, rank, reason = _usable(rows, settings, select)
    if reason is not None:
        return []
    chosen = _verified(answers, rank, settings)
    used = {row.id for *_, better, worse in chosen for row in (better, worse)}
    open_ones: dict[frozenset[str], Judged] = {}
    for judge, margin, better, worse in _in_order(answers, rank, settings):
        if judge != VERIFIER and not {better.id, worse.id} & used:
            high, low = sorted((better, worse), key=lambda row: (-row.scalar, row.sample, row.id))
            open_ones[frozenset((high.id, low.id))] = LLM, abs(margin), high, low
    return [(high, low) for *_, high, low in _apart(open_ones.values(), settings.per_prompt - len(chosen))]


def name_of(high: Decision, low: Decision) -> str:
    """Of two responses that are compared."""
    return f"{high.id}>{low.id}"


def _usable(
    rows: Sequence[Decision], settings: Preference, select: Select
) -> tuple[list[Decision], dict[str, int], str | None]:
    """(responses that can be in a pair, how right each is by its id, why there can be no pair)."""
    answers = [row for row in rows if may_teach(row.reason) and _can_be_learned(row, select)]
    rank = {row.id: _RANK[verdict(row.response, row.extra)] for row in answers}
    if len(answers) < 2:
        return answers, rank, "fewer than two usable responses"
    if not any(rank.values()):
        return answers, rank, "no right response"
    if settings.selected and not any(row.kept and rank[row.id] for row in answers):
        return answers, rank, "no selected response"
    return answers, rank, None


def _compared_pairs(
    answers: Sequence[Decision], rank: dict[str, int], settings: Preference, compared: Compared
) -> tuple[list[Pair], str | None]:
    """Verified pairs and those that the judge has decided; where there is none, why it has not decided the first."""
    chosen = _verified(answers, rank, settings)
    pairs = [_pair(better, worse, judge) for judge, _, better, worse in chosen]
    allowed = {(better.id, worse.id) for _, _, better, worse in _in_order(answers, rank, settings)}
    reasons = []
    for high in answers:
        for low in answers:
            found, reason = compared.get(name_of(high, low), (None, None))
            if reason is not None:
                reasons.append(reason)
            elif found is not None:
                better, worse = (high, low) if found == high.id else (low, high)
                if (better.id, worse.id) in allowed:
                    pairs.append(_pair(better, worse, LLM))
                else:
                    reasons.append(_NOT_ALLOWED)
    return pairs, None if pairs else next(iter(reasons), "tie")


def _verified(answers: Sequence[Decision], rank: dict[str, int], settings: Preference) -> list[Judged]:
    """What a verifier decides."""
    told = [one for one in _in_order(answers, rank, settings) if one[0] == VERIFIER]
    return _apart(told, settings.per_prompt)


def _apart(some: Iterable[Judged], most: int) -> list[Judged]:
    """The best of them, so many at most, in which no response comes twice."""
    taken: list[Judged] = []
    used: set[str] = set()
    for one in sorted(some, key=_best_first):
        *_, better, worse = one
        if len(taken) < most and not {better.id, worse.id} & used:
            used |= {better.id, worse.id}
            taken.append(one)
    return taken


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
