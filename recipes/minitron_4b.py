"""Minitron 4B: the smallest published model of this architecture, on two GPUs."""

from nemo_sdg.config import Data, Generate, Models, RewardTraining, Run, RunConfig, Select, Topology, Training


def minitron_4b() -> RunConfig:
    """One round on two GPUs with 80 GB, TP 2: Minitron-4B-Base learns from Nemotron-Mini-4B-Instruct.

    Rates: 2e-6 and 317 steps of 128 are what NeMo-Aligner's guide gives for a HelpSteer2 reward model of 70B;
    no report tells them for this size.
    """
    training = dict(global_batch_size=128, micro_batch_size=2, max_length=4096, learning_rate=2e-6, warmup_steps=10)
    return RunConfig(
        models=Models(
            base="minitron-4b/base",
            instruct="minitron-4b/instruct",
            reward="minitron-4b/reward",
            dtype="bf16",
        ),
        topology=Topology(tp=2, pp=1),
        generate=Generate(samples=4, max_tokens=1024, temperature=1.0, slots=128, group_size=256),
        select=Select(minimum={"helpfulness": 3.0}, per_prompt=1),
        data=Data(prompts="prompts.jsonl", helpsteer2="HelpSteer2/train.jsonl.gz"),
        sft=Training(steps=1000, **training),
        reward=RewardTraining(steps=317, **training),
        run=Run(name="minitron_4b"),
    )
