"""Sizes of the Nemotron architecture, readable without torch.

One `NemotronShape` describes a model: it comes from `conf/sizes.yaml` or from the `model_config.yaml` of a
released folder, and says which topologies can hold it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Mapping

import yaml

from nemo_sdg.config.selection import NUM_REWARD_OUTPUTS  # noqa: F401  (its readers know sizes from here)
from nemo_sdg.errors import CheckpointError, TopologyError
from nemo_sdg.models.stages import setting, stage_layers
from nemo_sdg.resources import resolve

_LARGEST = 1 << 40
"""What no size of a model reaches."""


_MOST_LAYERS = 10_000


@dataclass(frozen=True, kw_only=True)
class NemotronShape:
    """Sizes of one model; the names are those of NeMo's `model_config.yaml`."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    """Size of one head; not always hidden_size / num_attention_heads (Minitron-8B: 128 with 48 heads of 4096)."""
    vocab_size: int
    seq_length: int
    init_method_std: float = 0.0134
    rotary_percent: float = 0.5
    rotary_base: int = 10000
    layernorm_epsilon: float = 1e-5

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.kv_channels

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection: per KV group its queries, its key, its value."""
        return (self.num_attention_heads + 2 * self.num_query_groups) * self.kv_channels

    @property
    def num_parameters(self) -> int:
        """Parameters of the language model (embedding and output layer untied, no reward head)."""
        per_layer = (
            self.qkv_size * self.hidden_size
            + self.query_size * self.hidden_size
            + 2 * self.hidden_size * self.ffn_hidden_size
            + 4 * self.hidden_size
        )
        return self.num_layers * per_layer + 2 * self.hidden_size + 2 * self.vocab_size * self.hidden_size

    def padded_vocab_size(self, tp: int) -> int:
        """Vocabulary entries of all tensor-parallel shards, which are equally long: the last ones may be padding."""
        return -(-self.vocab_size // tp) * tp

    def check_topology(
        self,
        tp: int,
        pp: int,
        where: object = "topology",
        *,
        first_stage_layers: int | None = None,
        last_stage_layers: int | None = None,
        virtual_stages: int = 1,
    ) -> None:
        """Raises TopologyError unless TP divides the KV groups and what they are made of, and PP can cut the layers.

        TP need not divide the vocabulary: the model pads it.
        """
        for what, count in (
            ("KV groups", self.num_query_groups),
            ("attention heads", self.num_attention_heads),
            ("FFN columns", self.ffn_hidden_size),
            ("hidden channels", self.hidden_size),
        ):
            if tp < 1 or count % tp:
                valid = [n for n in range(1, min(count, 128) + 1) if count % n == 0]
                raise TopologyError(
                    f"tp does not divide the model's {what}",
                    where=where,
                    found=f"tp {tp} for {count} {what}",
                    expected=f"one of {', '.join(map(str, valid))}",
                    way_out=setting("tp", where, tp, valid),
                )
        ends = {"first": first_stage_layers, "last": last_stage_layers}
        stage_layers(self.num_layers, pp, vp=virtual_stages, where=where, **ends)

    def model_config(self) -> dict[str, Any]:
        """The part of NeMo's `model_config.yaml` that describes the architecture."""
        config = asdict(self)
        config["max_position_embeddings"] = self.seq_length
        config["encoder_seq_length"] = self.seq_length
        config["rotary_percentage"] = config.pop("rotary_percent")
        config.update(
            mcore_gpt=True, normalization="layernorm1p", activation="squared-relu", bias=False,
            transformer_block_type="pre_ln", position_embedding_type="rope",
            share_embeddings_and_output_weights=False, use_scaled_init_method=True,
            hidden_dropout=0.0, attention_dropout=0.0, ffn_dropout=0.0,
        )  # fmt: skip
        return config

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any], where: object, vocab_size: int) -> "NemotronShape":
        """The shape that a released `model_config.yaml` describes; the vocabulary comes from the embedding.

        Raises:
            CheckpointError: a size is missing, or the file describes another architecture.
        """
        _refuse_other_architectures(config, where)

        def number(*keys: str, default: float | None = None, whole: bool = True) -> Any:
            for key in keys:
                value = config.get(key)
                if isinstance(value, str):  # YAML 1.1 reads 1e-5 as text, OmegaConf as a number
                    value = _float(value)
                if value is not None:
                    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < _LARGEST
                    if not good or (whole and value != int(value)):
                        raise CheckpointError(
                            f"{key} cannot be", where=where, found=repr(config[key])[:80],
                            expected="a whole number above 0" if whole else "a number above 0",
                            way_out="download the folder again",
                        )  # fmt: skip
                    return int(value) if whole else float(value)
            if default is None:
                raise CheckpointError(
                    "a size of the model is missing",
                    where=where,
                    found=f"no number under {' or '.join(keys)}",
                    expected="a model_config.yaml of NeMo",
                    way_out="download the folder again",
                )
            return default

        heads, hidden, layers = number("num_attention_heads"), number("hidden_size"), number("num_layers")
        if layers > _MOST_LAYERS:  # readers count them one by one
            raise CheckpointError(
                "num_layers is too large", where=where, found=layers, expected=f"{_MOST_LAYERS} at most"
            )
        return cls(
            num_layers=layers,
            hidden_size=hidden,
            ffn_hidden_size=number("ffn_hidden_size"),
            num_attention_heads=heads,
            num_query_groups=number("num_query_groups", default=heads),
            kv_channels=number("kv_channels", default=hidden // heads),
            vocab_size=vocab_size,
            seq_length=number("encoder_seq_length", "seq_length", "max_position_embeddings"),
            init_method_std=number("init_method_std", default=cls.init_method_std, whole=False),
            rotary_percent=number("rotary_percentage", "rotary_percent", default=cls.rotary_percent, whole=False),
            rotary_base=number("rotary_base", default=cls.rotary_base),
            layernorm_epsilon=number("layernorm_epsilon", default=cls.layernorm_epsilon, whole=False),
        )


def _float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _refuse_other_architectures(config: Mapping[str, Any], where: object) -> None:
    """The released yaml names its parts; a model with another norm or activation would load and be wrong."""
    for key, expected in (
        ("normalization", "layernorm1p"),
        ("activation", "squared-relu"),
        ("bias", False),
        ("share_embeddings_and_output_weights", False),
        ("position_embedding_type", "rope"),
    ):
        if key in config and config[key] != expected:
            raise CheckpointError(
                f"{key} is not Nemotron's",
                where=where,
                found=repr(config[key])[:80],
                expected=repr(expected),
                way_out="use a checkpoint of the Nemotron-3 / Nemotron-4 / Minitron architecture",
            )


@lru_cache(maxsize=1)
def sizes() -> dict[str, NemotronShape]:
    """The shapes of `conf/sizes.yaml` by name."""
    with open(resolve("package:conf/sizes.yaml"), encoding="utf-8") as file:
        table = yaml.safe_load(file)
    known = {field.name for field in fields(NemotronShape)}
    return {name: NemotronShape(**{k: v for k, v in row.items() if k in known}) for name, row in table.items()}
