"""Nemotron-4 15B: one node generates, scores and trains its own policy and reward model."""

from nemo_sdg.config import Data, Generate, Models, RewardTraining, Run, RunConfig, Select, Topology, Training


def nemotron4_15b() -> RunConfig:
    """One round on one node of 8 GPUs with 80 GB, TP 8; all three folders hold models of the 15B shape.

    Rates: no report tells them for this size; they lie between the 340B's and the 4B's and are a start.
    """
    training = dict(global_batch_size=128, micro_batch_size=1, max_length=4096, learning_rate=2e-6, warmup_steps=10)
    return RunConfig(
        models=Models(
            base="nemotron4-15b/base",
            instruct="nemotron4-15b/instruct",
            reward="nemotron4-15b/reward",
            dtype="bf16",
        ),
        topology=Topology(tp=8, pp=1, sequence_parallel=True),
        generate=Generate(samples=4, max_tokens=1024, temperature=1.0, slots=128, group_size=256),
        select=Select(minimum={"helpfulness": 3.0}, per_prompt=1),
        data=Data(prompts="prompts.jsonl", helpsteer2="HelpSteer2/train.jsonl.gz"),
        sft=Training(steps=1000, **training),
        reward=RewardTraining(steps=317, **training),
        run=Run(name="nemotron4_15b"),
    )
