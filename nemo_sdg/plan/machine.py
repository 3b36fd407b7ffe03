"""The machine that a run is planned for: its numbers, and where each of them comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import yaml

from nemo_sdg.config import Hardware, RunConfig, nearest
from nemo_sdg.config.hardware import RULES
from nemo_sdg.errors import ConfigError
from nemo_sdg.resources import resolve

CPU, USUAL_GPU = "cpu", "H100-80GB"
_WORDS = ("gpu", "nodes", "calibration")
"""Settings of `hardware` that are no rate and no capacity."""
RATES = tuple(name for name in Hardware.__dataclass_fields__ if name not in _WORDS)


@dataclass(frozen=True)
class Machine:
    """One rank and what connects it with others; names and units are those of the settings `hardware.*`."""

    name: str
    numbers: Mapping[str, float]
    sources: Mapping[str, str]
    """Where each number comes from: a setting, the calibration, or conf/hardware.yaml."""

    def __getattr__(self, name: str) -> float:
        try:
            return self.__dict__["numbers"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def gpu(self) -> bool:
        return self.name != CPU

    @property
    def ranks_per_node(self) -> int:
        return int(self.gpus_per_node)

    @property
    def usable_bytes(self) -> float:
        """Memory of a rank that a run may fill."""
        return self.memory_bytes - self.reserved_bytes

    def nodes(self, ranks: int) -> int:
        return -(-ranks // self.ranks_per_node)

    def between(self, ranks: int) -> float:
        """Bytes per second within a group of so many neighbouring ranks."""
        return self.link_bytes_s if ranks <= self.ranks_per_node else self.network_bytes_s

    def all_reduce_s(self, num_bytes: float, ranks: int, span: int) -> float:
        """Seconds of an all-reduce by a ring: each rank sends 2 (n - 1) / n of it.

        Args:
            span: neighbouring ranks that the group is spread over.
        """
        if ranks == 1:
            return 0.0
        return self.message_s + 2 * (ranks - 1) / ranks * num_bytes / self.between(span)

    def waiting_fits(self, num_bytes: float) -> bool:
        """Whether models that wait, so many bytes a rank, fit a node's host memory."""
        return num_bytes * self.ranks_per_node <= self.host_memory_bytes

    def disk_s(self, num_bytes: float, ranks: int) -> float:
        """Seconds that the nodes of so many ranks take to read or write so many bytes together."""
        return num_bytes / (self.disk_bytes_s * self.nodes(ranks))


@lru_cache(maxsize=1)
def presets() -> dict[str, dict[str, Any]]:
    """conf/hardware.yaml: by name, and what all have under `defaults`."""
    with open(resolve("package:conf/hardware.yaml"), encoding="utf-8") as file:
        return yaml.safe_load(file)


def machine_of(config: RunConfig, dtype: str, ranks: int, gpu: bool) -> Machine:
    """The machine that a config names, or the usual one.

    Args:
        ranks: of the run; on a CPU they share one node.
        gpu: whether a run that names nothing is planned for GPUs.
    Raises:
        ConfigError: an unknown name, or a calibration that is not there or is none.
    """
    settings, known = config.hardware, presets()
    name = settings.gpu or (USUAL_GPU if gpu else CPU)
    names = [one for one in known if one != "defaults"]
    if name not in names:
        near = next((one for one in names if one.lower().startswith(name.lower())), nearest(name, names))
        raise ConfigError(
            "unknown machine", where="hardware.gpu", found=name, expected="one of " + ", ".join(names),
            way_out=f"the nearest is {near}; or set the numbers of another one, hardware.memory_bytes and so on",
        )  # fmt: skip
    layers = [
        ("conf/hardware.yaml", known["defaults"]),
        (f"conf/hardware.yaml, {name}", known[name]),
        (f"{settings.calibration}", calibration(settings.calibration, dtype) if settings.calibration else {}),
        ("set", {key: value for key, value in asdict(settings).items() if value is not None}),
    ]
    numbers, sources = {}, {}
    for source, values in layers:
        for key in RATES:
            if (value := values.get(key)) is not None:
                numbers[key] = float(value[dtype] if isinstance(value, Mapping) else value)
                sources[key] = source
    count = max(1, ranks)
    here = {"gpus_per_node": count, "memory_bytes": _memory() / count, "host_memory_bytes": _memory()}
    for key, value in here.items():
        if key not in numbers:
            numbers[key], sources[key] = float(value), "this machine"
    return Machine(name, numbers, sources)


def without_calibration(config: RunConfig, dtype: str) -> tuple[RunConfig, list[str]]:
    """For a run, which does without rates: (the config without a calibration that cannot be used, a note on it)."""
    path = config.hardware.calibration
    if path is None:
        return config, []
    try:
        calibration(path, dtype)
    except ConfigError as error:
        return replace(config, hardware=replace(config.hardware, calibration=None)), [f"time is by the usual rates: {error}"]
    return config, []


def calibration(path: str, dtype: str) -> dict[str, float]:
    """The rates that `nemo-sdg calibrate` has measured in a dtype. Raises ConfigError for a file that has none of these."""
    way_out = f"make it with `nemo-sdg calibrate {path}`"
    try:
        told = json.loads(resolve(path).read_bytes())
        rates = {key: float(value) for key, value in told["rates"].items()}
        measured = told.get("made", {}).get("dtype", dtype)
    except OSError as error:
        raise ConfigError("cannot read the calibration", where=path, found=error.strerror, way_out=way_out) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError("the file is no calibration", where=path, expected='{"rates": {...}}', way_out=way_out) from None
    if measured != dtype:
        raise ConfigError(
            "the calibration was measured in another dtype", where=path, found=measured, expected=dtype,
            way_out=f"measure this one: `nemo-sdg calibrate OTHER_FILE --dtype {dtype}`",
        )  # fmt: skip
    for key, value in rates.items():
        expected, holds = RULES.get(f"hardware.{key}", ("a rate", lambda _: False))
        if key not in RATES or not holds(value):
            raise ConfigError("a rate cannot be", where=path, found=f"{key}: {value:g}", expected=expected, way_out=way_out)
    return rates


def _memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
