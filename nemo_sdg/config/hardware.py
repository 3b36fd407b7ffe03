"""Settings of what a run is planned for: machines, how fast they are, and what is expected of the data. No row depends on
them; `plan` reads them, a run does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Optional

Rule = tuple[str, Callable[[Any], bool]]


@dataclass(kw_only=True)
class Hardware:
    """Each number that is null comes from the file of `calibration`, or else from conf/hardware.yaml, which says where it
    has it from."""

    gpu: Optional[str] = None
    """What a rank runs on, by its name in conf/hardware.yaml (cpu is one of them); null is this machine's CPU, or, for a
    run in bf16 or on a machine with GPUs, H100-80GB."""
    nodes: Optional[int] = None
    """Nodes that placements are looked for; null is as many as the run's ranks fill."""
    calibration: Optional[str] = None
    """File that `nemo-sdg calibrate` has written: the rates of the machine that it ran on."""
    gpus_per_node: Optional[int] = None
    """Ranks of one node."""
    memory_bytes: Optional[float] = None
    """Memory of one rank."""
    reserved_bytes: Optional[float] = None
    """Of it, what libraries, communication buffers and fragments take."""
    fragments: Optional[float] = None
    """What the allocator leaves unused between the tensors of a pass, as a share of activations and buffers."""
    host_memory_bytes: Optional[float] = None
    """Memory of one node's host, for models that wait."""
    flops: Optional[float] = None
    """Dense matrix operations of one rank per second at the most, in the run's dtype."""
    decode_efficiency: Optional[float] = None
    """Share of `flops` that a decode step reaches."""
    forward_efficiency: Optional[float] = None
    """Share of `flops` that a prefill or scoring pass reaches."""
    train_efficiency: Optional[float] = None
    """Share of `flops` that a training step reaches while it computes."""
    bandwidth_bytes_s: Optional[float] = None
    """Bytes of its own memory that a rank reads per second at the most."""
    bandwidth_efficiency: Optional[float] = None
    """Share of it that a decode step reaches."""
    link_bytes_s: Optional[float] = None
    """Bytes per second from a rank to another of the same node, one way."""
    network_bytes_s: Optional[float] = None
    """Bytes per second from a rank to one of another node, one way."""
    message_s: Optional[float] = None
    """Seconds of a message however short it is."""
    host_bytes_s: Optional[float] = None
    """Bytes per second between a rank and the host's memory."""
    disk_bytes_s: Optional[float] = None
    """Bytes per second that one node reads from or writes to the disk where models and runs lie."""
    step_s: Optional[float] = None
    """Seconds of a decode step beside its layers and rows."""
    pass_s: Optional[float] = None
    """Seconds of a prefill or scoring pass beside its layers."""
    decode_layer_s: Optional[float] = None
    """Seconds of a layer in a decode step beside its arithmetic: launching and Python."""
    layer_s: Optional[float] = None
    """The same of a prefill or scoring pass."""
    train_layer_s: Optional[float] = None
    """The same of a training micro batch, forward and backward."""
    kv_passes: Optional[float] = None
    """Times that a decode step goes through the keys and values of its rows."""
    row_s: Optional[float] = None
    """Seconds of a row in a decode step: choosing its token, keeping books."""
    sequence_s: Optional[float] = None
    """Seconds of a sequence of its own (in a prefill: of 64 tokens) in a layer of a packed pass."""
    sampling_passes: Optional[float] = None
    """Times that choosing tokens goes through the logits, in fp64."""
    micro_batch_s: Optional[float] = None
    """Seconds of a training micro batch beside its layers."""
    train_step_s: Optional[float] = None
    """Seconds of an optimizer step beside its micro batches and the bytes of the optimizer."""
    fit_s: Optional[float] = None
    """Seconds that a fit takes to begin and to commit, beside the bytes of its models."""
    start_s: Optional[float] = None
    """Seconds until the ranks of a run are up."""


@dataclass(kw_only=True)
class Expect:
    """What the time and the disk of a run depend on and nobody knows before."""

    prompt_tokens: Optional[float] = None
    """Tokens of a prompt in the mean; null is estimated from the bytes of data.prompts."""
    response_tokens: Optional[float] = None
    """Tokens of a response in the mean; null is half of generate.max_tokens."""
    row_tokens: Optional[float] = None
    """Tokens of a training sample in the mean, of a pair both; null is half of what the settings allow."""
    longest_row_tokens: Optional[float] = None
    """Tokens of the longest training sample, which says how far others are padded; null is what the settings allow in a
    pipeline, and elsewhere no padding."""
    bytes_per_token: float = 4.0
    """Bytes of text of a token."""
    row_bytes: float = 400.0
    """Bytes of a row in each stage beside its texts and token ids: names, scores, where it comes from."""


_POSITIVE: Rule = ("a number above 0", lambda x: x > 0)
_NOT_NEGATIVE: Rule = ("a number of at least 0", lambda x: x >= 0)
_SHARE: Rule = ("a number above 0 and up to 1", lambda x: 0 < x <= 1)
_COUNT: Rule = ("a whole number of at least 1", lambda x: x >= 1)
_SECONDS = (
    "message_s", "step_s", "pass_s", "decode_layer_s", "layer_s", "train_layer_s", "row_s", "sequence_s", "micro_batch_s",
    "train_step_s", "fit_s", "start_s",
)  # fmt: skip
_RATES = ("flops", "bandwidth_bytes_s", "link_bytes_s", "network_bytes_s", "host_bytes_s", "disk_bytes_s")
_SHARES = ("decode_efficiency", "forward_efficiency", "train_efficiency", "bandwidth_efficiency")

RULES: dict[str, Rule] = {
    "hardware.gpu": ("a name", lambda x: bool(x.strip())),
    "hardware.calibration": ("a name", lambda x: bool(x.strip())),
    **{f"hardware.{key}": _COUNT for key in ("nodes", "gpus_per_node")},
    **{f"hardware.{key}": _POSITIVE for key in ("memory_bytes", "host_memory_bytes", *_RATES)},
    **{f"hardware.{key}": _NOT_NEGATIVE for key in ("reserved_bytes", "fragments", "sampling_passes", "kv_passes", *_SECONDS)},
    **{f"hardware.{key}": _SHARE for key in _SHARES},
    **{f"expect.{key}": _POSITIVE for key in ("prompt_tokens", "response_tokens", "bytes_per_token")},
    **{f"expect.{key}": _POSITIVE for key in ("row_tokens", "longest_row_tokens")},
    "expect.row_bytes": _NOT_NEGATIVE,
}
