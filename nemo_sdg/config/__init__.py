"""The settings of a run: what they are (settings), where they come from (loading), what is
allowed (checks), and how they are written and named (values)."""

from nemo_sdg.config.checks import validate
from nemo_sdg.config.loading import from_yaml, load, read_mapping
from nemo_sdg.config.settings import (
    ATTRIBUTES,
    MISSING,
    PROMPT_KINDS,
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
    Synthesis,
    Topology,
    Training,
)
from nemo_sdg.config.values import fingerprint, flatten, identity, nearest, to_yaml

__all__ = [
    "ATTRIBUTES",
    "MISSING",
    "PROMPT_KINDS",
    "Data",
    "Endpoint",
    "Evaluate",
    "Generate",
    "Models",
    "PhaseTopology",
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
    "load",
    "nearest",
    "read_mapping",
    "to_yaml",
    "validate",
]
