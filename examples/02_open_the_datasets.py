"""What a run has handed on, opened as others open it.

    nemo-sdg run tiny --out tiny
    python examples/02_open_the_datasets.py tiny/round-0/datasets
"""

import json
import sys
from pathlib import Path

from datasets import load_dataset

folder = Path(sys.argv[1])

# With TRL: DPOTrainer(train_dataset=load_dataset(folder / "hf", "preference", split="train"), ...).
for name in ("sft", "preference", "regression"):
    for split, rows in load_dataset(str(folder / "hf"), name).items():
        print(f"{name}, {split}: {rows.num_rows} rows of {', '.join(rows.column_names)}")

# With NeMo: sft.jsonl is for its chat data set, reward.jsonl and preference.jsonl are for NeMo-Aligner.
with open(folder / "sft.jsonl", encoding="utf-8") as lines:
    for turn in json.loads(next(lines))["conversations"]:
        print(f"{turn['from']}: {turn['value']}")
