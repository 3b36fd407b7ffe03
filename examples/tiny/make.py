"""Makes everything under examples/tiny that is shipped: the data files and the three checkpoints.

    python examples/tiny/make.py               all of it, beside this script
    python examples/tiny/make.py --only data   the data files and the tokenizer, in a second

The same seed gives the same models on the same machine. See README.md here for how long it takes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import data
import vocabulary

SEED = 7
BASE_STEPS, INSTRUCT_STEPS, REWARD_STEPS = 2400, 60, 150
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--only", choices=("data", "base", "instruct", "reward"), help="make only this")
    parser.add_argument("--threads", type=int, default=1, help="what is shipped was made with 1")
    parser.add_argument("--steps", type=int, default=BASE_STEPS, help="steps of pretraining")
    settings = parser.parse_args()
    data.write(settings.out / "data")
    vocabulary.write(settings.out / "tokenizer.model")
    if settings.only != "data":
        make_models(settings)


def make_models(settings: argparse.Namespace) -> None:
    import torch

    from nemo_sdg.config import Topology
    from nemo_sdg.parallel import mesh as grid

    torch.set_num_threads(settings.threads)
    mesh = grid.join(Topology())
    makers = {"base": make_base, "instruct": make_instruct, "reward": make_reward}
    for kind in (settings.only,) if settings.only else makers:
        began = time.monotonic()
        shutil.rmtree(settings.out / kind, ignore_errors=True)
        makers[kind](settings.out, mesh, settings)
        print(f"{kind}: {time.monotonic() - began:.0f} s", flush=True)
        measure(settings.out, kind, mesh)


def make_base(out: Path, mesh: object, settings: argparse.Namespace) -> None:
    import lessons
    import torch

    from nemo_sdg.checkpoints import save
    from nemo_sdg.models import nemotron
    from nemo_sdg.models.shapes import sizes
    from nemo_sdg.models.tokenizer import Tokenizer
    from nemo_sdg.parallel import device

    torch.manual_seed(SEED)
    shape, tokenizer = sizes()["tiny"], Tokenizer(out / "tokenizer.model")
    with device.cuda_calls_on_cpu():
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(SEED)
    config = nemotron.transformer_config(shape, initialize=True)
    model = nemotron.build(config, shape, pre_process=True, post_process=True)
    with torch.no_grad():  # the width is small, so the weights start larger than std 0.02
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(3.0)
    docs = lessons.batches(lessons.reading, tokenizer, f"reading {SEED}", BATCH)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and n.startswith("decoder.")]
    others = [p for n, p in model.named_parameters() if not (p.dim() == 2 and n.startswith("decoder."))]
    optimizers = [
        # Half the documents of AdamW alone for the same accuracy.
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    learn(model, optimizers, language_loss, docs, settings.steps, lambda done: min(1.0, done / 0.02, 2.5 * (1 - done)))
    save.save(model, out / "base", shape, (out / "tokenizer.model").read_bytes(), mesh)


def make_instruct(out: Path, mesh: object, settings: argparse.Namespace) -> None:
    import lessons
    import torch

    from nemo_sdg.checkpoints import save
    from nemo_sdg.checkpoints.folder import ModelFolder
    from nemo_sdg.engine.load import load_model

    model, tokenizer = load_model(out / "base", mesh)
    shape = ModelFolder.open(out / "base").shape
    docs = lessons.batches(lessons.demonstration, tokenizer, f"demonstrations {SEED}", BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), weight_decay=0.0)
    learn(model, [optimizer], language_loss, docs, INSTRUCT_STEPS, falling)
    save.save(model, out / "instruct", shape, (out / "tokenizer.model").read_bytes(), mesh)


def make_reward(out: Path, mesh: object, settings: argparse.Namespace) -> None:
    import lessons
    import torch

    from nemo_sdg.checkpoints import save
    from nemo_sdg.checkpoints.folder import ModelFolder
    from nemo_sdg.checkpoints.load import fill
    from nemo_sdg.config import ATTRIBUTES
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.models import nemotron

    language, tokenizer = load_model(out / "base", mesh)
    shape = ModelFolder.open(out / "base").shape
    model = nemotron.build(nemotron.transformer_config(shape), shape, pre_process=True, post_process=True, reward=True)
    fill(model, ModelFolder.open(out / "base"), mesh, fresh_head_seed=SEED)
    rows = [json.loads(line) for line in (out / "data" / "helpsteer2_train.jsonl").read_text().splitlines()]
    docs = lessons.rated_batches(tokenizer, rows, ATTRIBUTES, f"rated {SEED}", BATCH)
    head, body = [], []
    for name, parameter in model.named_parameters():
        (head if "rm_head" in name else body).append(parameter)
    groups = [{"params": body, "lr": 3e-4}, {"params": head, "lr": 1e-2}]  # the head starts from noise
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    learn(model, [optimizer], regression_loss, docs, REWARD_STEPS, falling)
    output = {"model.output_layer.weight": language.output_layer.weight.detach()}
    save.save(model, out / "reward", shape, (out / "tokenizer.model").read_bytes(), mesh, also=output)


def falling(done: float) -> float:
    """A short warm-up, then down to a tenth."""
    return min(1.0, done / 0.03, 0.1 + 0.9 * (1 - done))


def learn(
    model: object, optimizers: list, loss_of: Callable, docs: Iterator, steps: int, schedule: Callable[[float], float]
) -> None:
    """`steps` updates; `schedule` maps the share of steps done to the share of the peak learning rate."""
    import torch

    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    began, mean = time.monotonic(), 0.0
    model.train()
    for step, batch in enumerate(islice(docs, steps)):
        share = schedule((step + 1) / steps)
        for group, peak in zip((g for optimizer in optimizers for g in optimizer.param_groups), peaks):
            group["lr"] = peak * share
        loss = loss_of(model, *batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        mean += (loss.item() - mean) / min(step + 1, 50)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"  step {step + 1}: loss {mean:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    model.eval()


def language_loss(model: object, tokens_BS: object, labels_BS: object) -> object:
    import torch

    positions_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS)
    logits_BSV = model(tokens_BS, positions_BS, None)
    return torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), ignore_index=-1)


def regression_loss(model: object, tokens_BS: object, lengths_B: object, values_BA: object) -> object:
    import torch

    from nemo_sdg.models.templates import ATTRIBUTE_SLOTS

    positions_BS = torch.arange(tokens_BS.shape[1]).expand_as(tokens_BS)
    rewards_BA = model(tokens_BS, positions_BS, None, lengths_B)
    return torch.nn.functional.mse_loss(rewards_BA[:, list(ATTRIBUTE_SLOTS.values())], values_BA)


def measure(out: Path, kind: str, mesh: object) -> None:
    """Prints what the saved model is worth on the held-out rows, from its bf16 folder."""
    from collections import Counter

    from world import exact_match, parse

    from nemo_sdg.engine.load import load_model
    from nemo_sdg.engine.rows import rate, respond
    from nemo_sdg.engine.sampling import Sampling
    from nemo_sdg.evaluation.agreement import agreement
    from nemo_sdg.records import Labelled, Prompt, Response, read_rows

    model, tokenizer = load_model(out / kind, mesh, reward=kind == "reward")
    if kind == "reward":
        rows, _ = read_rows(out / "data" / "helpsteer2_validation.jsonl", Labelled)
        asked = [Response(str(i), str(i), 0, row.messages, row.response) for i, row in enumerate(rows)]
        scored, _ = rate(model, tokenizer, mesh, asked, provenance={})
        print(agreement([row.scores for row in scored], [row.labels for row in rows]), flush=True)
        return
    prompts, _ = read_rows(out / "data" / "heldout.jsonl", Prompt)
    for temperature in (0.0, 1.0):
        sampling = Sampling(max_tokens=48, temperature=temperature, top_p=1.0, top_k=0, seed=SEED)
        answers, _ = respond(model, tokenizer, mesh, prompts, sampling, samples=1, slots=64, provenance={})
        right, count = Counter(), Counter()
        for row, prompt in zip(answers, prompts):
            kind_of_task = parse(prompt.messages[-1]["content"]).kind
            count[kind_of_task] += 1
            right[kind_of_task] += exact_match(prompt.extra["answer"], row.response)
        by_kind = {name: round(right[name] / count[name], 2) for name in sorted(count)}
        share = right.total() / count.total()
        print(f"  exact match at temperature {temperature:g}: {share:.3f} {by_kind}", flush=True)


if __name__ == "__main__":
    main()
