"""How `serve` is typed. The command line holds it among the other verbs, so nothing here imports more than typer."""

from __future__ import annotations

from typing import Optional

import typer

_POLICY = typer.Option(None, "--policy", metavar="DIR", help="A policy, for chat completions.")
_REWARD = typer.Option(None, "--reward", metavar="DIR", help="A reward model, served as NIM serves one.")
_TP = typer.Option(1, "--tp", min=1, help="Tensor-parallel ranks.")
_PP = typer.Option(1, "--pp", min=1, help="Pipeline stages.")
_DTYPE = typer.Option(None, "--dtype", help="fp64, fp32 or bf16; by default bf16 on a GPU and fp32 on a CPU.")
_HOST = typer.Option("127.0.0.1", "--host", help="Address to listen at; 0.0.0.0 is every one of this machine.")
_PORT = typer.Option(8000, "--port", min=0, max=65535, help="0 takes one that is free, and says which.")
_KEY_ENV = typer.Option(
    None, "--key-env", metavar="NAME", help="Environment variable with the key; by default NEMO_SDG_SERVE_KEY, if set."
)
_SLOTS = typer.Option(64, "--slots", help="Responses decoded at once; a run that has as many gets the same rows.")
_KV_CACHE = typer.Option(None, "--kv-cache-bytes", help="Keys and values that a rank may hold; by default enough.")
_WAITING = typer.Option(1024, "--waiting", min=0, help="Responses that may wait; more are refused with 429.")
_GRACE = typer.Option(30.0, "--grace", min=0, help="Seconds to finish what is under way after SIGTERM.")
_TIMEOUT = typer.Option(600, "--timeout", help="Seconds that a rank waits for a missing one.")
_THREADS = typer.Option(None, "--threads", min=1, help="CPU threads per rank; by default its share of the cores.")
_POLICY_NAME = typer.Option(None, "--policy-name", help="What clients call it; by default the name of its folder.")
_REWARD_NAME = typer.Option(None, "--reward-name", help="The same of the reward model.")


def serve(
    policy: Optional[str] = _POLICY,
    reward: Optional[str] = _REWARD,
    tp: int = _TP,
    pp: int = _PP,
    dtype: Optional[str] = _DTYPE,
    host: str = _HOST,
    port: int = _PORT,
    key_env: Optional[str] = _KEY_ENV,
    slots: int = _SLOTS,
    kv_cache_bytes: Optional[int] = _KV_CACHE,
    waiting: int = _WAITING,
    grace: float = _GRACE,
    timeout: int = _TIMEOUT,
    threads: Optional[int] = _THREADS,
    policy_name: Optional[str] = _POLICY_NAME,
    reward_name: Optional[str] = _REWARD_NAME,
) -> int:
    """The OpenAI chat-completions API for a policy and NIM's reward convention for a reward model."""
    from nemo_sdg import config
    from nemo_sdg.serve import launch

    settings = config.RunConfig(
        models=config.Models(dtype=dtype),
        topology=config.Topology(tp=tp, pp=pp),
        generate=config.Generate(slots=slots, kv_cache_bytes=kv_cache_bytes),
        run=config.Run(timeout_s=timeout, threads=threads),
    )
    serving = launch.Serving(
        policy=policy, reward=reward, policy_name=policy_name, reward_name=reward_name, host=host, port=port,
        key_env=key_env, most_waiting=waiting, grace_s=grace,
    )  # fmt: skip
    return launch.serve(settings, serving)
