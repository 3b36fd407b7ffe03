"""Compare: which of two responses is better, where no verifier says it? decisions/ becomes compared/.

The judge is shown the two in both orders. Only what it says both times makes a pair; a row of compared/ says which of the
two is better, or why nobody knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nemo_sdg.config import PAIRS, RunConfig
from nemo_sdg.quality.pairs import INCONSISTENT, LLM, SILENT, TIE as NEITHER, candidates, name_of
from nemo_sdg.config.judging import compares
from nemo_sdg.errors import ConfigError
from nemo_sdg.parallel import stopping
from nemo_sdg.records import Decision
from nemo_sdg.stages.context import Context
from nemo_sdg.stages.joining import Joined
from nemo_sdg.stages.questions import Inquiry
from nemo_sdg.store import Group, StageStore, lines
from nemo_sdg.synthesis.brief import Brief
from nemo_sdg.synthesis.judging import FIRST, SECOND, TIE, Comparison

VERSION = 1
"""Raised when the code changes what the same settings give."""
_ORDERS = ("there", "back")
"""Names of the two questions about two responses."""


def run(context: Context) -> dict[str, Any]:
    """Compares what is not compared yet.

    Returns:
        {"rows_in", "kept", "dropped", "faulty"} in couples of responses: those with a better one are kept, and "dropped"
        says why the others have none; "asked", questions to the judge.
    Raises:
        ConfigError: the settings want no judge of pairs.
    """
    if not compares(context.config):
        way_out = "set preference.judge=llm"
        raise ConfigError("there is nothing to compare", where="preference.judge", found="reward", way_out=way_out)
    settings = context.config.data.synthesis
    comparison = Comparison(settings.templates, Brief.load(settings.brief) if settings.brief else None)
    couples = _Couples(context.config, StageStore.finished(context.folder / "decisions"))
    preference = {key: getattr(context.config.preference, key) for key in PAIRS}
    inquiry = Inquiry(
        context, "compare", context.folder / "compared" / "answers", rows=couples.prompts,
        group_size=context.config.generate.group_size, version=VERSION, source=couples.source.digest,
        questions=comparison.digest, preference=preference, finished=context.config.select.finished,
    )  # fmt: skip
    walk = couples.walk()

    def ask(group: Group) -> dict[str, str]:
        asked = {}
        for one in walk(group):
            texts = (one.high.response, one.low.response)
            for order, (first, second) in zip(_ORDERS, (texts, texts[::-1])):
                asked[f"{one.name}/{order}"] = comparison.ask(one.high.messages, first, second, one.high.extra)
        return asked

    inquiry.run(ask, lambda group: len(_ORDERS) * couples.counts[group.index])
    return context.on_writer(lambda: _write(context, couples, comparison, inquiry))


def _write(context: Context, couples: _Couples, comparison: Comparison, inquiry: Inquiry) -> dict[str, Any]:
    answers = inquiry.store
    inputs = [couples.source.digest, answers.digest, comparison.digest]
    fingerprint = context.fingerprint("compared", version=VERSION, inputs=inputs)
    store = StageStore(context.folder / "compared", fingerprint, answers.rows, answers.group_size)
    if store.done:
        return store.totals
    walk = couples.walk()
    for group in store.missing():
        said = {name: comparison.answered(answer) for name, answer in inquiry.answers(group).items()}
        rows = [{**_verdict(one, said), "provenance": inquiry.identity} for one in walk(group)]
        store.commit(group, rows)
        stopping.heed()
    reasons = Counter(row["reason"] for row in store.committed())
    kept = reasons.pop(None, 0)
    counts = {"rows_in": sum(couples.counts.values()), "kept": kept, "dropped": dict(reasons.most_common())}
    return store.finish({**counts, "faulty": 0, "asked": answers.totals["rows_in"]})


def _verdict(one: _Couple, said: Mapping[str, str | None]) -> dict[str, Any]:
    """What two answers say of two responses; the second one has seen them the other way round."""
    there, back = (said.get(f"{one.name}/{order}") for order in _ORDERS)
    better, reason = None, None
    if there is None or back is None:
        reason = SILENT
    elif there == back == TIE:
        reason = NEITHER
    elif (there, back) in ((FIRST, SECOND), (SECOND, FIRST)):
        better = one.high.id if there == FIRST else one.low.id
    else:
        reason = INCONSISTENT
    return {"id": one.name, "judge": LLM, "better": better, "reason": reason}


@dataclass(frozen=True)
class _Couple:
    high: Decision
    """The one with the higher scalar."""
    low: Decision

    @property
    def name(self) -> str:
        return name_of(self.high, self.low)


class _Couples:
    """What is to be compared, prompt by prompt; nothing of it stays in memory."""

    def __init__(self, config: RunConfig, source: StageStore) -> None:
        self._config, self.source = config, source
        self.prompts, self.counts = 0, Counter()
        """Prompts, and couples of each group of them."""
        for number, of_prompt in enumerate(self._all()):
            self.prompts = number + 1
            self.counts[number // config.generate.group_size] += len(of_prompt)

    def walk(self) -> Any:
        """A function that gives the couples of a group; it is to be called for groups in their order."""
        prompts, at = self._all(), 0

        def couples(group: Group) -> Iterator[_Couple]:
            nonlocal at
            skipped, at = group.start - at, group.stop
            assert skipped >= 0, "the groups came out of order"
            of_group = list(islice(prompts, skipped, skipped + group.stop - group.start))
            return (one for of_prompt in of_group for one in of_prompt)

        return couples

    def _all(self) -> Iterator[list[_Couple]]:
        config = self._config
        together: Joined[Decision] = Joined(map(lines.prompt_id, self.source.lines()))
        for row in map(Decision.believed, self.source.read()):
            of_prompt = together.add(row.prompt_id, row)
            if of_prompt is not None:
                found = candidates(of_prompt, config.preference, config.select)
                yield [_Couple(high, low) for high, low in found]
