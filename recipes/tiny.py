"""Two rounds of the tiny world on one or two CPU cores, in a few minutes; what `make demo` runs."""

from nemo_sdg.config import Data, Evaluate, Expect, Generate, Models, RewardTraining, Run, RunConfig, Select, Training


def tiny() -> RunConfig:
    """A model of 1M parameters learns short tasks from its own filtered answers; held-out exact match rises."""
    world = "package:examples/tiny/"
    return RunConfig(
        models=Models(base=world + "base", instruct=world + "instruct", reward=world + "reward"),
        generate=Generate(samples=4, max_tokens=48, temperature=1.0, slots=64, group_size=64),
        # Every sample that passes counts: what comes up more often is more often right, which the reward model alone
        # cannot tell between answers that differ in one letter.
        select=Select(minimum={"helpfulness": 2.8}, unique=False),
        data=Data(
            prompts=world + "data/prompts.jsonl",
            prompts_per_round=512,
            helpsteer2=world + "data/helpsteer2_train.jsonl",
        ),
        sft=Training(
            steps=60,
            global_batch_size=32,
            micro_batch_size=16,
            max_length=256,
            learning_rate=3e-4,
            warmup_steps=5,
            weight_decay=0.0,
        ),
        reward=RewardTraining(
            start_from="latest",
            steps=40,
            global_batch_size=32,
            micro_batch_size=16,
            max_length=256,
            learning_rate=2e-4,
            warmup_steps=5,
            weight_decay=0.0,
        ),
        evaluate=Evaluate(
            exact_match=world + "data/heldout.jsonl",
            helpsteer2=world + "data/helpsteer2_validation.jsonl",
            rewardbench=world + "data/rewardbench.jsonl",
            instructions=world + "data/instructions.jsonl",
            win_rate=world + "data/heldout.jsonl",  # the prompts of exact_match, which are asked once for both
            max_tokens=48,
        ),
        # What a run of it has shown; without that the plan goes by half of the longest.
        expect=Expect(prompt_tokens=14, response_tokens=7, row_tokens=23, longest_row_tokens=70),
        run=Run(name="tiny", rounds=2, timeout_s=120, threads=1),  # too small for a second thread to help
    )
