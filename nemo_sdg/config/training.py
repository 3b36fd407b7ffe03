"""Settings of what is trained: the fits of a round, and the pairs that one of them learns from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
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
    """Decoupled weight decay of Adam."""
    beta1: float = 0.9
    """Decay of Adam's mean of the gradients."""
    beta2: float = 0.98
    """Decay of Adam's mean of their squares."""
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
class Preference(Training):
    """Which responses become pairs, and how the policy is tuned on them.

    The defaults are the published ones of Nemotron-4 340B (arXiv 2406.11704, section 3.3, and the configuration that is
    shipped with its Instruct model) where there is one; of a published range, one that DPO and RPO share.
    """

    judge: str = "reward"
    """Who says which of two is better where no verifier does: reward (the scalars, by the margin), or llm (the judge, asked
    in both orders about the pairs whose scalars differ most; only what it says both times counts)."""
    margin: float = 0.5
    """Least difference of the weighted scalars within a pair, where the reward model is the judge."""
    per_prompt: int = 1
    """Pairs of one prompt at most; a response is in one of them."""
    selected: bool = True
    """Only a response that selection has kept is chosen; false takes any that can be trained on."""
    enabled: bool = False
    """Tune the policy on the round's pairs; the tuned one is the round's policy."""
    start_from: str = "sft"
    """sft: what this round's SFT has made; or, without SFT, base, or latest: the policy that the round used. The start is
    also the reference."""
    objective: str = "rpo"
    """dpo (the chosen response is to be more likely, without end), or rpo (by as much as its reward is higher)."""
    beta: float = 1e-3
    """How closely the policy is held to the reference: a nat of difference counts as so much reward. Published: 3e-4 to 3e-3
    for DPO, 1e-3 to 1 for RPO, by log-probabilities that are summed over tokens."""
    eta: float = 1.0
    """rpo: scale of the rewards."""
    sft_weight: float = 1e-5
    """Weight of the chosen response's negative log-probability, summed over tokens. Published: 1e-5 to 1e-3 for DPO, 1e-5
    for RPO."""
    iterations: int = 1
    """Times that the policy is tuned on the pairs, each starting from the result of the one before, which is also its
    reference."""
    global_batch_size: int = 256
    """Pairs per optimizer step, over all data-parallel ranks."""
    micro_batch_size: int = 4
    """Pairs per forward pass and data-parallel rank: each is two sequences in one row."""
    learning_rate: float = 3e-7
    """Peak learning rate. Published: 3e-8 to 3e-7 for DPO, 3e-7 for RPO, constant."""


PAIRS = ("judge", "margin", "per_prompt", "selected")
"""Settings of `preference` that say which responses become pairs; the others say how the policy is tuned on them."""
TUNING = tuple(field.name for field in fields(Preference) if field.name not in PAIRS)
