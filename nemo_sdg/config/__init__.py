"""The settings of a run: what they are (settings), where they come from (loading), what is
allowed (checks), and how they are written and named (values)."""

from nemo_sdg.config.checks import validate
from nemo_sdg.config.loading import from_yaml, load
from nemo_sdg.config.settings import (
    ATTRIBUTES,
    MISSING,
    Budget,
    Data,
    Endpoint,
    Evaluate,
    Generate,
    Models,
    PhaseTopology,
    Preference,
    Revise,
    Run,
    RunConfig,
    Score,
    Select,
    Topology,
    Training,
)
from nemo_sdg.config.values import fingerprint, flatten, identity, identity_yaml, nearest, to_yaml

__all__ = [
    "ATTRIBUTES",
    "MISSING",
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
    "Topology",
    "Training",
    "fingerprint",
    "flatten",
    "from_yaml",
    "identity",
    "identity_yaml",
    "load",
    "nearest",
    "to_yaml",
    "validate",
]
