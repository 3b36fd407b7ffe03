"""Nemotron-4 340B: generate with Instruct, score with Reward, train from Base, as its technical report describes."""

from nemo_sdg.config import ATTRIBUTES, Data, Generate, Hardware, Models, RewardTraining, Run, RunConfig, Select, Topology, Training


def nemotron4_340b() -> RunConfig:
    """One round on 96 GPUs or a multiple of that, TP 8 within a node and PP 12 over nodes; weights are 682 GB in bf16.

    Not run at this size by its authors. `nemo-sdg plan` says 98 GiB a rank in training with one replica, so it is planned for
    GPUs of 141 GB; with 80 GB take PP 24 (`topology.pp=24 hardware.gpu=H100-80GB`).

    The rates and batches are the published ones (arXiv 2406.11704 and 2406.08673, section 3 and appendix I).
    The folders below are where you put the three repositories and your prompts; set them as `key=value`.
    """
    return RunConfig(
        models=Models(
            base="Nemotron-4-340B-Base",
            instruct="Nemotron-4-340B-Instruct",
            reward="Nemotron-4-340B-Reward",
            dtype="bf16",
        ),
        topology=Topology(tp=8, pp=12, sequence_parallel=True),
        hardware=Hardware(gpu="H200"),
        # Temperature and top-p of NVIDIA's own demonstration of this model.
        generate=Generate(samples=2, max_tokens=1024, temperature=0.2, top_p=0.7, slots=64, group_size=256),
        # The model card's weights; helpfulness of 3 from the same demonstration, for the report printed none.
        select=Select(
            minimum={"helpfulness": 3.0},
            weights=dict(zip(ATTRIBUTES, (0.3, 0.74, 0.46, 0.47, -0.33))),
            per_prompt=1,
        ),
        data=Data(prompts="prompts.jsonl", helpsteer2="HelpSteer2/train.jsonl.gz"),
        # General SFT: 200K dialogues, 3 epochs, batch 128 = 4,687 steps; rate searched within 1e-7 to 5e-7.
        sft=Training(
            start_from="base",
            steps=4687,
            global_batch_size=128,
            micro_batch_size=1,
            max_length=4096,
            learning_rate=3e-7,
            warmup_steps=10,
            weight_decay=0.1,
        ),
        # Reward model: HelpSteer2 train, 20,324 rows, 2 epochs, batch 128 = 317 steps at a constant 7e-7.
        reward=RewardTraining(
            start_from="base",
            steps=317,
            global_batch_size=128,
            micro_batch_size=1,
            max_length=4096,
            learning_rate=7e-7,
            warmup_steps=10,
            weight_decay=0.1,
        ),
        run=Run(name="nemotron4_340b", rounds=1, timeout_s=1800),
    )
