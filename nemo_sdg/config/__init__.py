"""The settings of a run: what they are (settings), where they come from (loading), what is
allowed (checks), and how they are written and named (values)."""

from nemo_sdg.config.checks import validate
from nemo_sdg.config.loading import from_yaml, load, read_mapping
from nemo_sdg.config.selection import ATTRIBUTES, MISSING, Budget, Revise, Select
from nemo_sdg.config.settings import (
    Data,
    Endpoint,
    Evaluate,
    Generate,
    Models,
    PhaseTopology,
    Preference,
    Run,
    RunConfig,
    Score,
    Topology,
    Training,
)
from nemo_sdg.config.synthesis import PROMPT_KINDS, Synthesis
from nemo_sdg.config.values import fingerprint, flatten, identity, identity_yaml, nearest, to_yaml

__all__ = [
    "ATTRIBUTES",
    "MISSING",
    "PROMPT_KINDS",
    "Budget",
    "Data",
    "Endpoint",
    "Evaluate",
    "Generate",
    "Models",
    "PhaseTopology",
    "Preference",
    "Revise",
    "Run",
    "RunConfig",
    "Score",
    "Select",
    "Synthesis",
    "Topology",
    "Training",
    "fingerprint",
    "flatten",
    "from_yaml",
    "identity",
    "identity_yaml",
    "load",
    "nearest",
    "read_mapping",
    "to_yaml",
    "validate",
]
