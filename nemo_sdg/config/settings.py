"""The settings of a run: typed, complete, and with their meaning under each field.

A recipe is a function that returns a whole `RunConfig`; `key=value` on the command line changes single
fields. An unknown key is an error that names the nearest valid one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""The five HelpSteer attributes in the order of the reward model's outputs 4 to 8."""


MISSING = -100.0
"""HelpSteer's mark for an attribute that nobody scored: never a number to compare, to average or to learn."""


@dataclass(kw_only=True)
class Models:
    base: str = "package:examples/tiny/base"
    """Folder of the Base checkpoint that fine-tuning starts from."""
    instruct: str = "package:examples/tiny/instruct"
    """Folder of the Instruct checkpoint that generates in round 0."""
    reward: str = "package:examples/tiny/reward"
    """Folder of the Reward checkpoint that scores in round 0."""
    dtype: Optional[str] = None
    """fp64, fp32 or bf16; null is the checkpoint's own on a GPU and fp32 on a CPU."""
    spec: str = "auto"
    """Layer implementation: local, te (TransformerEngine), or auto (te where it is installed and there is a GPU)."""


@dataclass(kw_only=True)
class Topology:
    tp: int = 1
    """Tensor-parallel ranks; divides the model's KV groups."""
    pp: int = 1
    """Pipeline stages; divides the model's layers, or what the uneven stages leave of them."""
    first_stage_layers: Optional[int] = None
    """Layers of the first pipeline stage, which also holds the embedding; null is as many as the others hold."""
    last_stage_layers: Optional[int] = None
    """Layers of the last pipeline stage, which also holds the output layer; null is as many as the others hold."""
    dp: Optional[int] = None
    """Data-parallel replicas; null is what the launch leaves over: world size / (tp x pp), 1 without torchrun."""
    sequence_parallel: bool = False
    """Shard the activations between the tensor-parallel regions along the sequence, in training."""


@dataclass(kw_only=True)
class Generate:
    samples: int = 4
    """Responses per prompt."""
    max_tokens: int = 512
    """Tokens per response at most."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Keeps the smallest set of tokens that holds this probability mass."""
    top_k: int = 0
    """Keeps this many most probable tokens; 0 keeps all."""
    slots: int = 64
    """Rows decoded at once by one model replica."""
    group_size: int = 64
    """Prompts per committed row group."""


@dataclass(kw_only=True)
class Score:
    slots: int = 64
    """Conversations scored at once by one model replica."""
    group_size: int = 256
    """Responses per committed row group."""


@dataclass(kw_only=True)
class Select:
    minimum: Dict[str, float] = field(default_factory=lambda: {"helpfulness": 3.0})
    """Lowest score kept, per attribute (NVIDIA's demo: helpfulness 3.0)."""
    maximum: Dict[str, float] = field(default_factory=dict)
    """Highest score kept, per attribute."""
    weights: Dict[str, float] = field(default_factory=lambda: dict(zip(ATTRIBUTES, (0.3, 0.74, 0.46, 0.47, -0.33))))
    """Weights of the scalar (model card of Nemotron-4-340B-Reward)."""
    minimum_scalar: Optional[float] = None
    """Lowest weighted scalar kept."""
    per_prompt: Optional[int] = None
    """Best responses kept for one prompt, by the scalar; null keeps all that pass."""
    finished: bool = True
    """Drop a response that max_tokens or the context cut off: it would teach to stop in mid-sentence."""
    unique: bool = True
    """Drop a response whose text equals one already kept for the same prompt."""


@dataclass(kw_only=True)
class Data:
    prompts: str = "package:examples/tiny/data/prompts.jsonl"
    """Prompt rows: a .jsonl or .jsonl.gz file."""
    prompts_per_round: Optional[int] = None
    """Prompts taken in one round, the next ones in the next round (wrapping around); null takes all each round."""
    helpsteer2: Optional[str] = None
    """Training rows in HelpSteer2's schema, joined to the scored rows for the reward model."""


@dataclass(kw_only=True)
class Training:
    enabled: bool = True
    """Train this model in each round; false carries the previous one on."""
    start_from: str = "base"
    """base, or latest: the model of this kind that the round used (policy or reward)."""
    steps: int = 100
    """Optimizer steps."""
    global_batch_size: int = 64
    """Sequences per optimizer step, over all data-parallel ranks."""
    micro_batch_size: int = 8
    """Sequences per forward pass and data-parallel rank."""
    max_length: int = 4096
    """Longest sequence in tokens; a longer one is set aside."""
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
    """Steps between restart points with the optimizer's state; null keeps none, a killed fit then begins again."""


@dataclass(kw_only=True)
class Evaluate:
    exact_match: Optional[str] = None
    """Held-out prompts with their right answers: {"id", "prompt", "answer"} rows."""
    helpsteer2: Optional[str] = None
    """Held-out rows in HelpSteer2's schema: agreement of the reward model with people."""
    max_tokens: int = 512
    """Tokens per held-out answer at most (greedy)."""


@dataclass(kw_only=True)
class Run:
    name: str = "run"
    """Name of the recipe."""
    rounds: int = 1
    """Rounds of generate, score, select, train, evaluate."""
    seed: int = 1234
    """Seed of everything random in the run."""
    timeout_s: int = 600
    """Seconds that a collective operation waits for a missing rank."""
    threads: Optional[int] = None
    """CPU threads per rank; null shares the cores of the machine among its ranks."""


@dataclass(kw_only=True)
class RunConfig:
    models: Models = field(default_factory=Models)
    topology: Topology = field(default_factory=Topology)
    generate: Generate = field(default_factory=Generate)
    score: Score = field(default_factory=Score)
    select: Select = field(default_factory=Select)
    data: Data = field(default_factory=Data)
    sft: Training = field(default_factory=Training)
    reward: Training = field(default_factory=Training)
    evaluate: Evaluate = field(default_factory=Evaluate)
    run: Run = field(default_factory=Run)
