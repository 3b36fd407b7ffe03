"""Wins with known answers: ties count half, nothing said loses, and what length alone has won is taken away."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from nemo_sdg.evaluation.win_rate import PENALTY, Said, win_rate


def said(scalar: float, characters: int = 10, text: str | None = None) -> Said:
    return Said(scalar, characters, text or f"{scalar} {characters}")


def test_identical_policies_are_even():
    answers = [said(i / 7, 10 + i) for i in range(40)]
    told = win_rate(answers, answers)
    assert (told["wins"], told["ties"], told["losses"], told["n"], told["win_rate"]) == (0, 40, 0, 40, 0.5)
    assert told["controlled"] == {"win_rate": 0.5, "low": None, "high": None}
    assert told["low"] < 0.5 < told["high"]


def test_the_same_text_is_a_tie_whatever_its_last_digit():
    told = win_rate([said(1.0000001, 5, "same")], [said(1.0, 5, "same")])
    assert told["ties"] == 1 and told["win_rate"] == 0.5
    assert win_rate([said(1.0, 5, "one")], [said(1.0, 5, "other")])["ties"] == 1
    assert win_rate([said(1.0000001, 5, "one")], [said(1.0, 5, "other")])["wins"] == 1


def test_known_counts_and_their_interval():
    ours = [said(2)] * 6 + [said(1, text="t")] * 2 + [said(0)] * 2
    told = win_rate(ours, [said(1, text="u")] * 10)
    assert (told["wins"], told["ties"], told["losses"], told["win_rate"]) == (6, 2, 2, 0.7)
    assert (told["low"], told["high"]) == pytest.approx((0.3968, 0.8922), abs=1e-4)  # Wilson, 7 of 10


def test_an_answer_wins_against_none_and_two_that_say_nothing_are_left_out():
    told = win_rate([said(-9), None, None, said(1)], [None, said(-9), None, said(0)])
    assert (told["wins"], told["losses"], told["n"], told["faulty"]) == (2, 1, 3, 1)
    nothing = win_rate([None], [None])
    assert nothing["n"] == 0 and nothing["win_rate"] is None and nothing["controlled"]["win_rate"] is None
    assert win_rate([], [])["low"] is None


def by_length_alone(count: int, longer: float) -> tuple[list[Said], list[Said]]:
    """Who says more wins; our answers are the longer ones at so many of the prompts."""
    chance = np.random.default_rng(5)
    away = chance.normal(longer, 30, size=count).round()
    ours = [said(float(gap), 200 + int(gap), f"a{i}") for i, gap in enumerate(away)]
    return ours, [said(0.0, 200, f"b{i}") for i in range(count)]


def test_what_length_alone_has_won_is_taken_away():
    told = win_rate(*by_length_alone(400, 25.0))
    assert told["win_rate"] > 0.75 and told["low"] > 0.7
    controlled = told["controlled"]
    assert controlled["low"] < 0.5 < controlled["high"] and abs(controlled["win_rate"] - 0.5) < 0.15


def test_what_was_won_at_equal_length_is_left():
    chance = np.random.default_rng(6)
    ours = [said(float(chance.random() < 0.8), 200, f"a{i}") for i in range(300)]
    told = win_rate(ours, [said(0.5, 200, f"b{i}") for i in range(300)])
    assert told["controlled"]["win_rate"] == pytest.approx(told["win_rate"], abs=0.002)
    assert told["controlled"]["low"] == pytest.approx(told["low"], abs=0.03)
    # A length that has nothing to do with it takes nothing away either.
    lengths = chance.integers(50, 400, size=300)
    ours = [said(one.scalar, int(n), one.text) for one, n in zip(ours, lengths)]
    told = win_rate(ours, [said(0.5, 200, f"b{i}") for i in range(300)])
    assert told["controlled"]["win_rate"] == pytest.approx(told["win_rate"], abs=0.03)


def test_the_model_is_the_one_of_the_paper():
    """theta and phi that answers were drawn with come back: P(win) = sigma(theta + phi tanh(d / s))."""
    chance, theta, phi = np.random.default_rng(7), 0.6, 1.5
    away = chance.normal(20, 80, size=20_000).round()
    odds = theta + phi * np.tanh(away / away.std())
    won = chance.random(20_000) < 1 / (1 + np.exp(-odds))
    ours = [said(1.0 if win else -1.0, 1000 + int(gap), f"a{i}") for i, (win, gap) in enumerate(zip(won, away))]
    told = win_rate(ours, [said(0.0, 1000, f"b{i}") for i in range(20_000)])
    assert told["controlled"]["win_rate"] == pytest.approx(1 / (1 + math.exp(-theta)), abs=0.012)
    assert told["controlled"]["low"] < told["controlled"]["win_rate"] < told["controlled"]["high"]
    assert told["win_rate"] > told["controlled"]["win_rate"] + 0.02


def test_scipy_finds_the_same_theta():
    """The penalised likelihood as its formula stands, on lengths of which a few are far off: tanh is not a line there."""
    chance = np.random.default_rng(8)
    away = (chance.standard_t(1.5, size=60) * 90 + 30).round()
    won = chance.choice([0.0, 0.5, 1.0], size=60, p=[0.2, 0.1, 0.7])
    length = np.tanh(away / away.std())

    def loss(b: np.ndarray) -> float:
        odds = b[0] + b[1] * length
        return float(np.sum(np.logaddexp(0, odds) - won * odds) + PENALTY / 2 * (b @ b))

    theta, _ = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}).x
    ours = [said(float(win - 0.5), 10_000 + int(gap), f"a{i}") for i, (win, gap) in enumerate(zip(won, away))]
    told = win_rate(ours, [said(0.0, 10_000, f"b{i}") for i in range(60)])
    assert told["controlled"]["win_rate"] == pytest.approx(1 / (1 + math.exp(-theta)), abs=1e-6)


def test_who_wins_everywhere_has_a_rate_that_ends_and_the_same_interval_each_time():
    ours, theirs = [said(1.0, 9, f"a{i}") for i in range(50)], [said(0.0, 9, f"b{i}") for i in range(50)]
    told = win_rate(ours, theirs)
    rate = told["controlled"]["win_rate"]
    assert told["win_rate"] == 1.0 and 0.99 < rate < 1.0
    # Where the gradient is zero: 50 (1 - p) = PENALTY theta.
    assert 50 * (1 - rate) == pytest.approx(PENALTY * math.log(rate / (1 - rate)), rel=1e-6)
    assert win_rate(*by_length_alone(100, 5.0)) == win_rate(*by_length_alone(100, 5.0))
