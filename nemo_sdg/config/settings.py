"""The settings of a run: typed, complete, and with their meaning under each field.

A recipe is a function that returns a whole `RunConfig`; `key=value` on the command line changes single
fields. An unknown key is an error that names the nearest valid one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional

from nemo_sdg.config.evaluating import Evaluate
from nemo_sdg.config.hardware import Expect, Hardware
from nemo_sdg.config.keeping import Keep
from nemo_sdg.config.rewarding import RewardTraining
from nemo_sdg.config.selection import Budget, Revise, Select
from nemo_sdg.config.synthesis import Synthesis
from nemo_sdg.config.training import Preference, Training


@dataclass(kw_only=True)
class Models:
    base: str = "package:examples/tiny/base"
    """Folder of the Base checkpoint that fine-tuning starts from."""
    instruct: Optional[str] = "package:examples/tiny/instruct"
    """Folder of the Instruct checkpoint that generates in round 0; null trains one from Base first, as `sft` says, on
    data.sft."""
    reward: Optional[str] = "package:examples/tiny/reward"
    """Folder of the Reward checkpoint that scores in round 0; null trains one from Base first, as `reward` says, on what
    people judged."""
    judge: Optional[str] = None
    """Folder of the checkpoint that answers questions about responses, in every round the same, so that no policy judges
    itself as it learns; null is who generates in round 0 (a server of its own: judge.backend)."""
    dtype: Optional[str] = None
    """fp64, fp32 or bf16; null is the checkpoint's own on a GPU and fp32 on a CPU."""
    spec: str = "auto"
    """Layer implementation: local, te (TransformerEngine), or auto (te where it is installed and there is a GPU)."""
    placement: str = "in_turn"
    """Where local Instruct and Reward live: in_turn (one after the other on the same ranks), together (both resident,
    responses are scored row group by row group while others are generated), or split (on disjoint ranks, at the same time)."""


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
    virtual_stages: int = 1
    """Chunks of layers that each pipeline stage holds in training, in turn with the other stages; divides its layers. More
    chunks leave the stages idle for less time."""
    dp: Optional[int] = None
    """Data-parallel replicas; null is what the launch leaves over: world size / (tp x pp), 1 without torchrun."""
    sequence_parallel: bool = False
    """Shard the activations between the tensor-parallel regions along the sequence, in training."""


@dataclass(kw_only=True)
class PhaseTopology:
    """The ranks of one phase where they differ from the run's; null takes over what `topology` says."""

    tp: Optional[int] = None
    """Tensor-parallel ranks; null is topology.tp."""
    pp: Optional[int] = None
    """Pipeline stages; null is topology.pp."""
    dp: Optional[int] = None
    """Data-parallel replicas; null is what the ranks give."""


@dataclass(kw_only=True)
class Endpoint:
    """A server that speaks the OpenAI chat-completions API: NVIDIA NIM, trtllm-serve, vLLM, `nemo-sdg serve`."""

    url: Optional[str] = None
    """Base URL, for example http://127.0.0.1:8000/v1."""
    model: Optional[str] = None
    """Name of the model as the server knows it; null asks the server and takes its only one."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is never written anywhere."""
    concurrency: int = 64
    """Requests under way at a time at most; fewer while the server says 429 or gets slower."""
    timeout_s: float = 600.0
    """Seconds that one request may take."""
    retries: int = 6
    """Times that one request is tried again after 408, 409, 429, 5xx, a broken connection, or an answer that is late,
    cut short or not JSON."""


@dataclass(kw_only=True)
class Generate:
    backend: str = "local"
    """Who answers: local (models.instruct on these ranks), or endpoint (a server)."""
    endpoint: Endpoint = field(default_factory=Endpoint)
    topology: PhaseTopology = field(default_factory=PhaseTopology)
    samples: int = 4
    """Responses per prompt."""
    others: Dict[str, int] = field(default_factory=dict)
    """More generators, each with its responses per prompt: a folder as models.instruct takes one, or a server's base
    URL, `#` and the model's name behind it where it has several. They answer one after the other, the same in every
    round. A server may move to another address while a run goes on."""
    max_tokens: int = 512
    """Tokens per response at most."""
    min_tokens: int = 0
    """Tokens per response at least: until then the model cannot stop."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Keeps the smallest set of tokens that holds this probability mass."""
    top_k: int = 0
    """Keeps this many most probable tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keeps the tokens with at least this share of the most probable one's probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that stand in the prompt or the response already."""
    stop: List[str] = field(default_factory=list)
    """Texts that end a response, besides the model's own end of turn; what is kept ends before them."""
    logprobs: bool = False
    """Keep the log-probability of each generated token under the model."""
    slots: int = 64
    """Rows decoded at once by one model replica."""
    prefill_tokens: int = 512
    """Prompt tokens of one forward pass at most; a multiple of 64."""
    kv_cache_bytes: Optional[int] = None
    """Bytes of keys and values that a rank may hold; null is enough for every slot to fill the model's context."""
    fixed_shape: bool = True
    """Always run all slots, so that a text is bit-equal whatever its neighbours; false runs fewer when few are left."""
    group_size: int = 64
    """Prompts per committed row group."""


@dataclass(kw_only=True)
class Score:
    backend: str = "local"
    """Who scores: local (models.reward on these ranks), endpoint (a server with NIM's reward convention), or hf (models.reward
    is any sequence-classification model that transformers can load)."""
    endpoint: Endpoint = field(default_factory=Endpoint)
    topology: PhaseTopology = field(default_factory=PhaseTopology)
    pack_tokens: int = 4096
    """Tokens of packed conversations in one forward pass at most; a longer conversation goes alone."""


@dataclass(kw_only=True)
class Judge:
    """Who answers questions about responses: whether they meet their checks, which of two is better. Always greedy."""

    backend: str = "local"
    """local (models.judge, or where that is null who generates in round 0, a server too), or endpoint (a server of its own)."""
    endpoint: Endpoint = field(default_factory=Endpoint)
    max_tokens: int = 64
    """Tokens per answer at most; its first word is what counts."""
    language: str = "en"
    """Code of the language, as in conf/prompts/languages.yaml, in which it is asked about checks of the user's own rows
    (data.checks); a brief has its own language."""


@dataclass(kw_only=True)
class Data:
    prompts: str = "package:examples/tiny/data/prompts.jsonl"
    """Prompt rows: a .jsonl, .jsonl.gz or .parquet file, a folder of them, a glob, or hf://."""
    prompts_per_round: Optional[int] = None
    """Prompts taken in one round, the next ones in the next round (wrapping around); null takes all each round."""
    helpsteer2: Optional[str] = None
    """Training rows in HelpSteer2's schema, joined to the scored rows for the reward model."""
    checks: bool = False
    """Hold responses to the column `checks` of the rows of `prompts`, in a run without a brief; beside a brief
    (synthesis.own_prompts) they are held to it anyway."""
    synthesis: Synthesis = field(default_factory=Synthesis)
    sft: Dict[str, float] = field(default_factory=dict)
    """Files of dialogues to learn from, each with its weight as in data.labelled; they join the selected responses."""
    labelled: Dict[str, float] = field(default_factory=dict)
    """More files in HelpSteer2's schema, each with its weight: 2 takes every row twice, 0.5 the rows of about half of
    the prompts, the same ones in every round."""
    preference: Dict[str, float] = field(default_factory=dict)
    """Files of pairs that people judged, each with its weight: HelpSteer2's preference subset or TRL's columns."""
    validation_share: float = 0.0
    """Share of the prompts whose rows are set apart for validation, by a hash of the first user turn."""
    licence: str = "unknown"
    """What the dataset card says of the licence, an identifier that Hugging Face knows."""


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
    stop_after: Optional[str] = None
    """End by itself so long after the job has begun, between two units of work, with status 75; for example 3h50m."""
    threads: Optional[int] = None
    """CPU threads per rank; null shares the cores of the machine among its ranks."""
    tensorboard: bool = False
    """Write loss, learning rate, gradient norm and tokens per second of each fit for TensorBoard, to logs/tensorboard/."""
    wandb: Optional[str] = None
    """Project of Weights & Biases that is told the same; its own environment variables say who you are."""
    strict: bool = False
    """A row that cannot be used ends the run with an error that names it; false sets it aside with the reason."""


@dataclass(kw_only=True)
class RunConfig:
    models: Models = field(default_factory=Models)
    topology: Topology = field(default_factory=Topology)
    generate: Generate = field(default_factory=Generate)
    score: Score = field(default_factory=Score)
    judge: Judge = field(default_factory=Judge)
    select: Select = field(default_factory=Select)
    revise: Revise = field(default_factory=Revise)
    data: Data = field(default_factory=Data)
    sft: Training = field(default_factory=Training)
    reward: RewardTraining = field(default_factory=RewardTraining)
    preference: Preference = field(default_factory=Preference)
    evaluate: Evaluate = field(default_factory=Evaluate)
    budget: Budget = field(default_factory=Budget)
    keep: Keep = field(default_factory=Keep)
    hardware: Hardware = field(default_factory=Hardware)
    expect: Expect = field(default_factory=Expect)
    run: Run = field(default_factory=Run)
