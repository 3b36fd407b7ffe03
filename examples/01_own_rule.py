"""Rules of your own: the tiny world, without long answers and without answers that repeat the question.

    nemo-sdg run examples/01_own_rule.py --out own
"""

import dataclasses

from nemo_sdg.config import Recipe, load
from nemo_sdg.quality import Context, Drop, Keep
from nemo_sdg.records import Scored


def at_most(characters: int):
    def short_enough(row: Scored, context: Context) -> Keep | Drop:
        return Keep() if len(row.response) <= characters else Drop(f"more than {characters} characters")

    return short_enough


def no_echo(row: Scored, context: Context) -> Keep | Drop:
    return Drop("repeats the question") if row.messages[-1]["content"] in row.response else Keep()


def own_rule() -> Recipe:
    tiny = load("tiny")
    return Recipe(dataclasses.replace(tiny, run=dataclasses.replace(tiny.run, name="own_rule")), (at_most(40), no_echo))
