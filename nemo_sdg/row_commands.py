"""How `generate`, `score`, `select` and `evaluate` are typed: the verbs on files of rows. Nothing here imports more than typer."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

import typer

_MODEL = typer.Option(..., "--model", metavar="DIR", help="Folder of the checkpoint.")
_ROWS = "a file, a folder, a glob or hf://"
_RESULT = typer.Option(..., "--out", metavar="FILE", help="The .jsonl file to write.")
_TP = typer.Option(1, "--tp", min=1, help="Tensor-parallel ranks.")
_PP = typer.Option(1, "--pp", min=1, help="Pipeline stages.")
_DTYPE = typer.Option(None, "--dtype", help="fp64, fp32 or bf16; by default bf16 on a GPU and fp32 on a CPU.")
_STRICT = typer.Option(False, "--strict", help="A row that cannot be used is an error that names it, not set aside.")


def generate(
    model: str = _MODEL,
    prompts: str = typer.Option(..., "--prompts", metavar="ROWS", help=f'Rows with "messages" or "prompt": {_ROWS}.'),
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
    rows: str = typer.Option(..., "--input", metavar="ROWS", help=f"Rows with a prompt and its response: {_ROWS}."),
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
    overrides: List[str] = typer.Argument(None, metavar="[KEY=VALUE]...", help="Settings of select and reward.outputs, by full key."),
    rows: str = typer.Option(..., "--input", metavar="ROWS", help=f"Scored rows: {_ROWS}."),
    out: Path = _RESULT,
    strict: bool = _STRICT,
) -> int:
    """Selection only: the kept ones of scored rows to a file, the others beside it with their reasons."""
    from nemo_sdg import select_verb

    return select_verb.select(rows, out, overrides or [], strict=strict)


def evaluate(
    overrides: List[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Settings of evaluate, generate, score and reward.outputs, by full key."
    ),
    policy: Optional[str] = typer.Option(None, "--policy", metavar="DIR", help="The policy that is measured."),
    reward: Optional[str] = typer.Option(
        None, "--reward", metavar="DIR", help="The reward model that is measured, or that judges --win-rate."
    ),
    against: Optional[str] = typer.Option(None, "--against", metavar="DIR", help="The policy that --win-rate compares with."),
    rewardbench: Optional[str] = typer.Option(None, "--rewardbench", metavar="FILE", help="Pairs in RewardBench's schema."),
    helpsteer2: Optional[str] = typer.Option(None, "--helpsteer2", metavar="FILE", help="Rows in HelpSteer2's schema."),
    exact_match: Optional[str] = typer.Option(None, "--exact-match", metavar="FILE", help='Rows with "prompt" and "answer".'),
    instructions: Optional[str] = typer.Option(
        None, "--instructions", metavar="FILE", help='Rows with "prompt" and "checks" that a program can decide.'
    ),
    win_rate: Optional[str] = typer.Option(None, "--win-rate", metavar="FILE", help="Prompts for both policies."),
    out: Optional[Path] = typer.Option(None, "--out", metavar="FILE", help="Also write all figures to this .json file."),
    tp: int = _TP,
    pp: int = _PP,
    dtype: Optional[str] = _DTYPE,
    max_tokens: int = typer.Option(512, "--max-tokens", help="Tokens per answer at most (greedy)."),
    strict: bool = _STRICT,
) -> int:
    """The evaluations alone: a policy, a reward model or both, on held-out rows."""
    from nemo_sdg import config, evaluate_verb

    settings = config.RunConfig(
        models=config.Models(dtype=dtype),
        topology=config.Topology(tp=tp, pp=pp),
        evaluate=config.Evaluate(
            rewardbench=rewardbench, helpsteer2=helpsteer2, exact_match=exact_match, instructions=instructions,
            win_rate=win_rate, max_tokens=max_tokens,
        ),
        run=config.Run(strict=strict),
    )
    return evaluate_verb.evaluate(settings, overrides or [], policy=policy, reward=reward, against=against, out=out)
