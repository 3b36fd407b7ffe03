"""The settings of a run: what they are (settings), where they come from (loading, recipes), what is
allowed (checks), and how they are written and named (values)."""

from nemo_sdg.config.checks import validate, validate_training
from nemo_sdg.config.evaluating import Evaluate
from nemo_sdg.config.loading import from_yaml, load, load_recipe, override, read_mapping
from nemo_sdg.config.hardware import Expect, Hardware
from nemo_sdg.config.keeping import Keep
from nemo_sdg.config.lora import Lora
from nemo_sdg.config.recipes import Recipe, rule_digests
from nemo_sdg.config.rewarding import RewardTraining
from nemo_sdg.config.selection import ATTRIBUTES, MISSING, OUTPUTS, Budget, Revise, Select
from nemo_sdg.config.settings import (
    Data,
    Endpoint,
    Generate,
    Judge,
    Models,
    PhaseTopology,
    Run,
    RunConfig,
    Score,
    Topology,
)
from nemo_sdg.config.synthesis import PROMPT_KINDS, Synthesis
from nemo_sdg.config.training import PAIRS, TUNING, Preference, Training
from nemo_sdg.config.values import dataset_settings, dataset_yaml, fingerprint, flatten, identity, nearest, to_yaml

__all__ = [
    "ATTRIBUTES",
    "MISSING",
    "OUTPUTS",
    "PAIRS",
    "PROMPT_KINDS",
    "TUNING",
    "Budget",
    "Data",
    "Endpoint",
    "Evaluate",
    "Expect",
    "Generate",
    "Hardware",
    "Judge",
    "Keep",
    "Lora",
    "Models",
    "PhaseTopology",
    "Preference",
    "Recipe",
    "Revise",
    "RewardTraining",
    "Run",
    "RunConfig",
    "Score",
    "Select",
    "Synthesis",
    "Topology",
    "Training",
    "dataset_settings",
    "dataset_yaml",
    "fingerprint",
    "flatten",
    "from_yaml",
    "identity",
    "load",
    "load_recipe",
    "nearest",
    "override",
    "read_mapping",
    "rule_digests",
    "to_yaml",
    "validate",
    "validate_training",
]
