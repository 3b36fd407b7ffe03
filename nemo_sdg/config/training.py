"""Settings of what is trained: the fits of a round, and the pairs that one of them learns from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from nemo_sdg.config.lora import Lora


@dataclass(kw_only=True)
class Training:
    enabled: bool = True
    """Train this model in each round; false carries the previous one on."""
    start_from: str = "base"
    """base, or latest: the model of this kind that the round used (policy or reward). A reward model may also start from the
    policy: the one that the round has trained, or else the one that it used."""
    steps: int = 100
    """Optimizer steps."""
    global_batch_size: int = 64
    """Samples per optimizer step, over all data-parallel ranks; a pair is one."""
    micro_batch_size: int = 8
    """Samples per forward pass and data-parallel rank."""
    max_length: int = 4096
    """Longest sequence in tokens; a longer one is set aside."""
    packed_sequence_size: Optional[int] = None
    """Tokens of a row that several samples share, each seeing itself alone; micro_batch_size then counts such rows. null
    gives each sample a row of its own."""
    learning_rate: float = 1e-5
    """Peak learning rate."""
    warmup_steps: int = 10
    """Steps of linear warm-up; the rate is then constant."""
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    clip_grad: float = 1.0
    """Largest norm of the gradient over all ranks; 0 switches clipping off."""
    restart_every: Optional[int] = None
    """Steps between restart points with the optimizer's state; null makes one only when the run is told to stop (SIGTERM or
    SIGUSR1), a killed fit then begins again."""
    keep_last: int = 1
    """Restart points that are kept."""
    validate_every: Optional[int] = None
    """Steps between validations, and once more at the end: the loss of held-out rows, and of a reward model how well it
    agrees with their labels; null never validates."""
    validation: Optional[str] = None
    """Held-out rows in the shape of those that train; null takes the prompts that data.validation_share sets apart, or for
    a reward model without any evaluate.helpsteer2."""
    keep_best: bool = True
    """Where a fit is validated, its result is the model of the lowest validation loss; false takes the last one."""
    lora: Lora = field(default_factory=Lora)


@dataclass(kw_only=True)
class Preference:
    judge: str = "reward"
    """Who says which of two is better where no verifier does: reward (the scalars, by the margin), or llm (the judge, asked
    in both orders about the pairs whose scalars differ most; only what it says both times counts)."""
    margin: float = 0.5
    """Least difference of the weighted scalars within a pair, where the reward model is the judge."""
    per_prompt: int = 1
    """Pairs of one prompt at most; a response is in one of them."""
    selected: bool = True
    """Only a response that selection has kept is chosen; false takes any that can be trained on."""
