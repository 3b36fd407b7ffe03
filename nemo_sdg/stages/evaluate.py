"""What the round has gained: the models before the run and after this round, on rows that no training has seen.

Writes `evaluation.json`, whole or not at all. The models that the run started from are measured in round 0, which keeps
what later rounds compare with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any

from nemo_sdg.engine.backends.choosing import Role
from nemo_sdg.evaluation import files, held_out, measures
from nemo_sdg.evaluation.drift import drift, kept
from nemo_sdg.evaluation.gate import KINDS, deciding, verdict
from nemo_sdg.evaluation.win_rate import Said, win_rate
from nemo_sdg.records import Prompt
from nemo_sdg.stages.context import Context
from nemo_sdg.store import commit_json, read_json
from nemo_sdg.store.fits import EVALUATION as FILE, fits
from nemo_sdg.store.waves import START

_OF_POLICY, _OF_REWARD = ("policy", "instructions"), ("reward", "reward_faulty", "rewardbench")


def run(context: Context) -> dict[str, Any]:
    """Measures the policy and the reward model of this round; does nothing when that is done.

    Returns:
        What `measures.of_policy` and `measures.of_reward` say of the models after this round, and in "before" of those that
        the run started from: "policy" and "reward" are None where no held-out rows are set, the others are absent then.
        "drift" and "win_rate" are of this round's models against those before (see `drift` and `win_rate`); the answers are
        judged by the reward model of before, so that all rounds have one judge. Where the policy was tuned on pairs after
        SFT, "sft" is the exact match of what SFT alone has made. "models" names those before, and "reference", in round 0,
        is what drift and win rate compare with. "gate" says of each kind that had to be better whether the model that this
        round has trained goes on; see `gate.verdict`.
    """
    path = context.folder / FILE
    done = _read(context, path)
    if done is not None:
        return done
    result = _Measuring(context).result()
    if context.mesh.writer:
        commit_json(path, result)
    context.mesh.barrier()
    return result


class _Measuring:
    """One round: all that the policies are asked first, then all that the reward models score, so that none is loaded
    twice."""

    def __init__(self, context: Context) -> None:
        self.context, self.config = context, context.config
        self.rows = files.read(context.config)
        self.first = _read(context, context.run.round(0) / FILE) if context.round > 0 else None
        """What round 0 has found; None while the models of before are to be measured."""
        self.new = {kind: context.trained(kind, context.round) for kind in ("policy", "reward")}

    def result(self) -> dict[str, Any]:
        context, rows, first = self.context, self.rows, self.first
        said: dict[str, dict[str, str]] = {}
        if first is None:
            said["before"] = self._ask(context.given("policy"), rows.prompts, "evaluate policy before training")
        if self.new["policy"] is not None:
            said["after"] = self._ask(context.local("policy", self.new["policy"]), rows.prompts, "evaluate policy")
        after_sft = any(fit.folder == "sft" for fit in fits(self.config)) and bool(rows.exact_match)
        if after_sft:
            sft = context.local("policy", context.folder / "sft")
            said["sft"] = self._ask(sft, rows.exact_match, "evaluate sft")
        labelled, pairs = measures.labelled(rows), measures.compared(rows)
        replies = [measures.replies(rows, said.get(when, {})) for when in ("before", "after")]
        groups = [[], [], *replies] if first is not None else [labelled, pairs, *replies]
        title = "evaluate reward before training" if first is None else "judge the policy's answers"
        judged, benched, *scored = self._score(context.given("reward"), groups, title)
        answered = {when: measures.compared_as(rows, self.config, said[when], scores)
                    for when, scores in zip(("before", "after"), scored) if when in said}  # fmt: skip
        if first is None:
            before = {**measures.of_policy(rows, said["before"]),
                      **measures.of_reward(rows, self.config, judged, benched)}  # fmt: skip
            reference = self._reference(judged, answered["before"])
        else:
            before, reference = first["before"], first.get("reference", {})
        after = {**self._after_policy(said, before), **self._after_reward(labelled, pairs, before, reference)}
        if rows.win_rate and "answers" in reference:
            start = [None if one is None else Said(*one) for one in reference["answers"]]
            after["win_rate"] = win_rate(answered.get("after", start), start)
        if after_sft:
            after["sft"] = measures.of_policy(rows, said["sft"])["policy"]
        models = self.config.models
        named = {"policy": models.instruct or f"{START}/policy", "reward": models.reward or f"{START}/reward"}
        told = {**after, "before": before, "models": named}
        gate = self._gate(after, before)
        told |= {"gate": gate} if gate else {}
        return {**told, "reference": reference} if first is None and reference else told

    def _gate(self, after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        """The verdict on each model that this round has trained and that has to be better than the one it would follow."""
        context, found = self.context, {}
        for kind in KINDS:
            if deciding(self.config.evaluate, kind) is not None and self.new[kind] == context.folder / kind:
                found[kind] = verdict(self.config.evaluate, kind, after, self._old(kind, before))
                context.console.say(f"gate of the {kind} of round {context.round}: {found[kind]['why']}")
        return found

    def _old(self, kind: str, before: dict[str, Any]) -> dict[str, Any]:
        """What was measured of the model that the round began with."""
        old = self.context.trained(kind, self.context.round - 1)
        return before if old is None else _read(self.context, old.parent / FILE) or before

    def _after_policy(self, said: dict[str, dict[str, str]], before: dict[str, Any]) -> dict[str, Any]:
        """A policy that was not trained is the one of before."""
        if "after" in said:
            return measures.of_policy(self.rows, said["after"])
        return {name: before[name] for name in _OF_POLICY if name in before}

    def _after_reward(
        self, labelled: measures.Conversations, pairs: measures.Conversations, before: dict[str, Any],
        reference: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        remembered = reference.get("scores")
        if self.new["reward"] is None:
            found = {name: before[name] for name in _OF_REWARD if name in before}
            now = remembered
        else:
            role = self.context.local("reward", self.new["reward"])
            judged, benched = self._score(role, [labelled, pairs], "evaluate reward")
            found = measures.of_reward(self.rows, self.config, judged, benched)
            now = kept([scores for scores in judged if scores is not None])
        if remembered is not None:
            found["drift"] = drift(remembered, now, self.config.evaluate)
        return found

    def _reference(self, judged: list[held_out.Scores], answered: list[Said | None]) -> dict[str, Any]:
        """What the models of before have shown: their distribution of scores, and how each of their answers was scored."""
        found: dict[str, Any] = {}
        if self.rows.helpsteer2:
            found["scores"] = kept([scores for scores in judged if scores is not None])
        if self.rows.win_rate:
            found["answers"] = [None if one is None else list(astuple(one)) for one in answered]
        return found

    def _ask(self, role: Role, prompts: Iterable[Prompt], title: str) -> dict[str, str]:
        context = self.context
        return held_out.asked(role, prompts, context.mesh, context.place(role), context.console, title)

    def _score(self, role: Role, groups: list[measures.Conversations], title: str) -> list[list[held_out.Scores]]:
        if not any(groups):
            return [[] for _ in groups]
        return held_out.on_phase(
            self.context.mesh, self.context.place(role),
            lambda mesh: held_out.scores(role, groups, mesh, self.context.console, title),
        )  # fmt: skip


def _read(context: Context, path: Path) -> dict[str, Any] | None:
    """What rank 0 finds there, on every rank: a shared file system may show a new file to some ranks first."""
    return context.on_writer(lambda: read_json(path))
