"""How `generate`, `score` and `select` are typed: the verbs on files of rows. Nothing here imports more than typer."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

import typer

_MODEL = typer.Option(..., "--model", metavar="DIR", help="Folder of the checkpoint.")
_RESULT = typer.Option(..., "--out", metavar="FILE", help="The .jsonl file to write.")
_TP = typer.Option(1, "--tp", min=1, help="Tensor-parallel ranks.")
_PP = typer.Option(1, "--pp", min=1, help="Pipeline stages.")
_DTYPE = typer.Option(None, "--dtype", help="fp64, fp32 or bf16; by default bf16 on a GPU and fp32 on a CPU.")
_STRICT = typer.Option(False, "--strict", help="A row that cannot be used is an error that names it, not set aside.")


def generate(
    model: str = _MODEL,
    prompts: Path = typer.Option(..., "--prompts", metavar="FILE", help='Rows with "messages" or "prompt".'),
    out: Path = _RESULT,
    tp: int = _TP,
    pp: int = _PP,
    dtype: Optional[str] = _DTYPE,
    max_tokens: int = typer.Option(512, "--max-tokens", help="Tokens per response at most."),
    min_tokens: int = typer.Option(0, "--min-tokens", help="Tokens per response at least."),
    temperature: float = typer.Option(1.0, "--temperature", help="Divides the logits; 0 is greedy."),
    top_p: float = typer.Option(1.0, "--top-p", help="Keeps the most probable tokens of this mass."),
    top_k: int = typer.Option(0, "--top-k", help="Keeps this many most probable tokens; 0 keeps all."),
    min_p: float = typer.Option(0.0, "--min-p", help="Keeps tokens of at least this share of the highest probability."),
    repetition_penalty: float = typer.Option(1.0, "--repetition-penalty", help="Above 1, words come back less often."),
    stop: List[str] = typer.Option([], "--stop", metavar="TEXT", help="Also ends a response; repeatable."),
    logprobs: bool = typer.Option(False, "--logprobs", help="Also write each token's log-probability."),
    seed: int = typer.Option(1234, "--seed", help="Seed of the random streams, one per row."),
    samples: int = typer.Option(1, "--samples", help="Responses per prompt."),
    strict: bool = _STRICT,
) -> int:
    """Responses only: prompts from a file, answers to a file."""
    from nemo_sdg import config, file_verbs

    settings = config.RunConfig(
        models=config.Models(dtype=dtype),
        topology=config.Topology(tp=tp, pp=pp),
        generate=config.Generate(
            samples=samples, max_tokens=max_tokens, min_tokens=min_tokens, temperature=temperature, top_p=top_p,
            top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty, stop=stop, logprobs=logprobs,
        ),
        run=config.Run(seed=seed, strict=strict),
    )
    return file_verbs.generate(settings, model, prompts, out)


def score(
    model: str = _MODEL,
    rows: Path = typer.Option(..., "--input", metavar="FILE", help="Rows with a prompt and its response."),
    out: Path = _RESULT,
    tp: int = _TP,
    pp: int = _PP,
    dtype: Optional[str] = _DTYPE,
    strict: bool = _STRICT,
) -> int:
    """Attributes only: conversations from a file, five scores each to a file."""
    from nemo_sdg import config, file_verbs

    settings = config.RunConfig(
        models=config.Models(dtype=dtype), topology=config.Topology(tp=tp, pp=pp), run=config.Run(strict=strict)
    )
    return file_verbs.score(settings, model, rows, out)


def select(
    overrides: List[str] = typer.Argument(None, metavar="[KEY=VALUE]...", help="Settings of `select`, by full key."),
    rows: Path = typer.Option(..., "--input", metavar="FILE", help="Scored rows, .jsonl or .jsonl.gz."),
    out: Path = _RESULT,
    strict: bool = _STRICT,
) -> int:
    """Selection only: scored rows from a file, the kept ones to a file, the others beside it with their reasons."""
    from nemo_sdg import select_verb

    return select_verb.select(rows, out, overrides or [], strict=strict)
