"""SFT in the loop: every few steps the policy answers prompts, the reward model judges, and the best answers are learned.

    torchrun --standalone --nproc_per_node 2 examples/03_learn_from_own_answers.py OUT [STEPS]

The weights that train are the weights that generate. For online RPO: task "preference", settings `Preference`, and
`teach=OwnPairs(preference, select)` of `nemo_sdg.training.online`.
"""

import sys
from pathlib import Path

from nemo_sdg.config import Generate, Models, Score, Select, Topology, Training
from nemo_sdg.engine.backends.local import LocalScorer
from nemo_sdg.engine.load import load_model
from nemo_sdg.parallel.mesh import join, leave
from nemo_sdg.records import Prompt, read_rows
from nemo_sdg.training.fit import fit
from nemo_sdg.training.online import Online

WORLD = "package:examples/tiny/"


def main(out: str, steps: int = 40) -> None:
    mesh = join(Topology())  # every rank a replica; Topology(tp=2) splits the models
    reward, tokenizer = load_model(WORLD + "reward", mesh, reward=True)  # stays on the device
    prompts, _ = read_rows(WORLD + "data/prompts.jsonl", Prompt)
    online = Online(
        prompts=prompts,
        scorer=LocalScorer(reward, tokenizer, mesh, Score(), {"reward": "tiny"}),
        every=min(10, steps),
        prompts_at_once=64,
        generate=Generate(samples=4, max_tokens=48, temperature=1.0, slots=64),
        select=Select(minimum={"helpfulness": 2.8}, per_prompt=1),
    )
    result = fit(
        "sft",
        Training(steps=steps, global_batch_size=32, micro_batch_size=16, max_length=256, learning_rate=3e-4),
        models=Models(),
        start=WORLD + "instruct",
        rows=online,
        out=Path(out),
        mesh=mesh,
        seed=1,
    )
    if mesh.writer:
        for one in result["online"]:
            print(f"step {one['step']}: kept {one['kept']} of {one['asked']}, helpfulness {one['mean']['helpfulness']:.2f}")
    leave()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
