"""Small pieces of the real engine and the real trainer, timed: decode steps, passes, training steps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nemo_sdg.calibrate.samples import PassTimes, StepTimes, Times
from nemo_sdg.checkpoints import save
from nemo_sdg.config import Models, Training
from nemo_sdg.console import Console
from nemo_sdg.engine.budget import BLOCK
from nemo_sdg.engine.generate import Engine
from nemo_sdg.engine.requests import Request, Sampling
from nemo_sdg.engine.score import score
from nemo_sdg.models import nemotron
from nemo_sdg.models.nemotron import DTYPES
from nemo_sdg.models.shapes import NemotronShape, sizes
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.parallel import device
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.resources import resolve

_MODELS = ((2, 64), (6, 64), (3, 128), (2, 256), (2, 384))
"""Layers and width; the FFN is four times as wide."""
_CONTEXT, _PROMPT, _ANSWER = 512, 40, 24
_FITS = ((20, 8, 16, None), (60, 4, 4, None), (20, 1, 32, 384))
"""Words of a row, micro batch, global batch, tokens of a packed row."""
_LARGE = 1024
"""Rows and columns of a large product."""
_MESSAGE = 1 << 20
"""Numbers of a large message."""
_FIRST_PIECE = 10
"""Below are control pieces and the markers of the prompt format."""


@dataclass
class Measured:
    machine: dict[str, Any]
    flops: float
    """Of a large matrix product."""
    bandwidth_bytes_s: float
    """Of reading memory."""
    ranks: int = 1
    """That were at work at a time, each as a replica of its own."""
    message_s: float = 0.0
    """Of the smallest all-reduce over all of them."""
    link_bytes_s: float = 0.0
    """Of a large one; 0 where one rank was alone."""
    shards: int = 1
    """Of the optimizer's state: on GPUs the replicas share it."""
    decode: list[Times] = field(default_factory=list)
    passes: list[PassTimes] = field(default_factory=list)
    steps: list[StepTimes] = field(default_factory=list)
    fit_s: list[float] = field(default_factory=list)


def clock() -> float:
    """Seconds; of one thread alone those that the processor gave to it, which others on the machine hardly change."""
    return time.thread_time() if _by_processor() else time.perf_counter()


def _by_processor() -> bool:
    alone = not dist.is_initialized() or dist.get_world_size() == 1
    return alone and torch.get_num_threads() == 1 and not device.has_cuda()


def measure(mesh: Mesh, folder: Path, dtype: str | None, console: Console) -> Measured:
    """Everything that the rates are made of, in about a minute.

    Args:
        mesh: replicas of one rank, which all do the same at a time, as those of a run: they share caches and memory.
        folder: where small models and rows may lie for a while; all see it.
    """
    dtype = dtype or ("bf16" if device.has_cuda() else "fp32")
    told = "processor" if _by_processor() else "wall"
    machine = {"dtype": dtype, "ranks": mesh.dp, "threads": torch.get_num_threads(), "torch": torch.__version__, "clock": told}
    mesh.barrier()
    found = Measured(machine, *_raw(DTYPES[dtype]), mesh.dp, *_messages(mesh), mesh.dp if device.has_cuda() else 1)
    tokenizer_file = resolve("package:examples/tiny/tokenizer.model")
    tokenizer = Tokenizer(tokenizer_file)
    with console.progress("measuring generation and scoring", len(_MODELS)) as bar:
        for layers, width in _MODELS:
            shape = _shape(layers, width)
            mesh.barrier()
            _generation(found, mesh, shape, dtype, tokenizer)
            _scoring(found, mesh, shape, dtype, tokenizer)
            bar.advance()
    with console.progress("measuring training", 1 + len(_MODELS)) as bar:
        # What the first fit of a process waits for is not measured.
        for (layers, width), fits in ((_MODELS[0], _FITS[:1]), *((model, _FITS) for model in _MODELS)):
            _training(found, mesh, _shape(layers, width), dtype, tokenizer_file.read_bytes(), folder, fits)
            bar.advance()
    del found.steps[0], found.fit_s[0]
    return found


def _shape(layers: int, width: int) -> NemotronShape:
    return dataclasses.replace(
        sizes()["tiny"], num_layers=layers, hidden_size=width, ffn_hidden_size=4 * width,
        num_attention_heads=max(4, width // 64), num_query_groups=2, kv_channels=max(16, min(64, width // 4)), seq_length=_CONTEXT,
    )  # fmt: skip


def _raw(dtype: torch.dtype) -> tuple[float, float]:
    """(operations per second of a large matrix product, bytes per second of reading memory)."""
    at = device.device()
    left, right = (torch.rand((_LARGE, _LARGE), device=at).to(dtype) for _ in range(2))
    product = _median(lambda: left @ right, 5)
    memory = torch.ones(1 << 26, device=at, dtype=torch.float32)
    reading = _median(lambda: memory.sum(), 5)
    return 2 * _LARGE**3 / product, memory.nbytes / reading


def _messages(mesh: Mesh) -> tuple[float, float]:
    """(seconds of a small all-reduce over all ranks, bytes per second of a large one), with the waiting for each other that
    comes of work between them; means, for a run waits for the slow ones too."""
    if mesh.dp == 1:
        return 0.0, 0.0
    left, right, small, large = (torch.ones(size, device=device.device()) for size in ((64, 128), (128, 512), 16, _MESSAGE))

    def seconds(count: int, *told: torch.Tensor) -> float:
        mesh.barrier()
        began = clock()
        for _ in range(count):
            for _ in range(5):
                left @ right
            for tensor in told:
                dist.all_reduce(tensor, group=mesh.dp_group)
        _done()
        return (clock() - began) / count

    seconds(50, small)
    alone = seconds(400)
    least, most = seconds(400, small) - alone, seconds(50, large) - alone
    return max(least, 1e-9), 2 * (mesh.dp - 1) / mesh.dp * large.nbytes / max(most - least, 1e-9)


def _median(work: Callable[[], Any], times: int) -> float:
    work()
    seconds = []
    for _ in range(times):
        began = clock()
        work()
        _done()
        seconds.append(clock() - began)
    return statistics.median(seconds)


def _done() -> None:
    if device.has_cuda():
        torch.cuda.synchronize()


def _model(mesh: Mesh, shape: NemotronShape, dtype: str, *, reward: bool = False) -> torch.nn.Module:
    torch.manual_seed(1)
    config = nemotron.transformer_config(shape, dtype=DTYPES[dtype], initialize=True)
    model = nemotron.build(config, shape, pre_process=True, post_process=True, reward=reward)
    return model.to(device.device()).eval()


def _pieces(count: int, length: int, seed: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(_FIRST_PIECE, sizes()["tiny"].vocab_size, (count, length), generator=draw).tolist()


def _generation(found: Measured, mesh: Mesh, shape: NemotronShape, dtype: str, tokenizer: Tokenizer) -> None:
    model = _model(mesh, shape, dtype)
    for slots, samples, prompt, answer in ((8, 1, _PROMPT, _ANSWER), (64, 4, _PROMPT, _ANSWER), (16, 1, 300, 12)):
        engine = Engine(model, tokenizer, mesh, slots=slots)
        asked = Sampling(max_tokens=answer, min_tokens=answer)
        for number, ids in enumerate(_pieces(slots // samples, prompt, slots)):
            for sample in range(samples):
                engine.submit(Request(f"{number}", sample, ids, asked, samples))
        prefills, decodes = [], []
        while not engine.idle:
            before, tokens = engine.stats.prefill_steps, engine.stats.prefill_tokens
            began = clock()
            engine.step()
            _done()
            took = clock() - began
            if engine.stats.prefill_steps > before:
                prefills.append((took, engine.stats.prefill_tokens - tokens))
            else:
                decodes.append(took)
        context = prompt + answer / 2
        found.decode.append(Times(statistics.median(decodes), shape, dtype, slots, context))
        # A pass is always as long, whatever it holds; the first one also warms up.
        for took, tokens in prefills[1:] or prefills:
            rows = round(tokens / prompt * samples) if prompt <= tokens else 0
            pieces = -(-tokens // BLOCK) if prompt > BLOCK else tokens / prompt
            found.passes.append(PassTimes(took, shape, dtype, 512, pieces, prompt / 2, slots, rows))


def _scoring(found: Measured, mesh: Mesh, shape: NemotronShape, dtype: str, tokenizer: Tokenizer) -> None:
    model = _model(mesh, shape, dtype, reward=True)
    for length, count, limit in ((32, 64, 2048), (128, 32, 4096), (400, 4, 1600)):
        texts = _pieces(count, length, length)
        took = _median(lambda: (score(model, tokenizer, mesh, texts, limit)), 3)
        passes = -(-count * length // limit)
        together = count / passes
        found.passes.append(PassTimes(took / passes, shape, dtype, together * length, together, length / 2, 0, 0))


def _training(
    found: Measured, mesh: Mesh, shape: NemotronShape, dtype: str, tokenizer: bytes, folder: Path, fits: Sequence[Any]
) -> None:
    from nemo_sdg.training.fit import fit

    start, rows = folder / f"start-{len(found.steps)}", folder / "sft.jsonl"
    save.save(_model(mesh, shape, dtype), start, shape, tokenizer, mesh, dtype=dtype)
    for words, micro, batch, packed in fits:
        if mesh.writer:
            _write_rows(rows, words)
        mesh.barrier()
        length = _num_tokens(rows, tokenizer, folder)
        settings = Training(
            steps=5, global_batch_size=batch * mesh.dp, micro_batch_size=micro, max_length=_CONTEXT, packed_sequence_size=packed,
            warmup_steps=0, learning_rate=1e-5,
        )  # fmt: skip
        ends: list[float] = []
        out, began = folder / f"out-{len(found.steps)}", clock()
        with contextlib.redirect_stdout(None):  # what NeMo prints is of no interest here
            fit("sft", settings, models=Models(dtype=dtype), start=start, rows=rows, out=out, mesh=mesh, seed=1,
                on_step=lambda step, loss, ends=ends: ends.append(clock()))  # fmt: skip
        steps = [after - before for before, after in zip(ends, ends[1:])] or [0.0]  # only the writer hears of steps
        took = statistics.median(steps)
        micro_batches, width, pieces = batch // micro, -(-length // 8) * 8, 0.0
        if packed is not None:
            micro_batches = max(1, -(-batch * length // packed))
            width, pieces = -(-(-(-batch // micro_batches) * length) // 8) * 8, batch / micro_batches
        found.steps.append(StepTimes(took, shape, dtype, micro, width, pieces, micro_batches))
        found.fit_s.append(clock() - began - settings.steps * took)


def _write_rows(path: Path, words: int) -> None:
    """Dialogues that are equally long."""
    turns = [{"from": "User", "value": "add", "label": None}, {"from": "Assistant", "value": "abc " * words, "label": None}]
    row = json.dumps({"system": "", "mask": "User", "type": None, "conversations": turns})
    path.write_text(f"{row}\n" * 64)


def _num_tokens(path: Path, tokenizer: bytes, folder: Path) -> int:
    from nemo_sdg.training.samples import read, sft_sample

    (length,) = {sample.num_tokens for sample in read(sft_sample, path, Tokenizer(tokenizer, folder), _CONTEXT).rows}
    return length
