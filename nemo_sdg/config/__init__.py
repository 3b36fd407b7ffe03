"""The settings of a run: what they are (settings), where they come from (loading, recipes), what is
allowed (checks), and how they are written and named (values)."""

from nemo_sdg.config.checks import validate
from nemo_sdg.config.loading import from_yaml, load, load_recipe, override
from nemo_sdg.config.recipes import Recipe, rule_digests
from nemo_sdg.config.settings import (
    ATTRIBUTES,
    MISSING,
    Data,
    Endpoint,
    Evaluate,
    Generate,
    Models,
    PhaseTopology,
    Run,
    RunConfig,
    Score,
    Select,
    Topology,
    Training,
)
from nemo_sdg.config.values import fingerprint, flatten, identity, nearest, to_yaml

__all__ = [
    "ATTRIBUTES",
    "MISSING",
    "Data",
    "Endpoint",
    "Evaluate",
    "Generate",
    "Models",
    "PhaseTopology",
    "Recipe",
    "Run",
    "RunConfig",
    "Score",
    "Select",
    "Topology",
    "Training",
    "fingerprint",
    "flatten",
    "from_yaml",
    "identity",
    "load",
    "load_recipe",
    "nearest",
    "override",
    "rule_digests",
    "to_yaml",
    "validate",
]
