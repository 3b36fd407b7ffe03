"""The recipes of recipes/nemo/ by name, for Python and for NeMo's command line.

`nemo llm finetune --factory "minitron_4b_sft(start='DIR', rows='FILE')"` finds them through the entry point `nemo_run.cli`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import FunctionType

import nemo_run as run

from nemo_sdg import resources
from nemo_sdg.training.nemo import llm


def recipes() -> dict[str, Callable[..., run.Partial]]:
    """Each public function of each file, as `FILE_FUNCTION`."""
    found = {}
    for file in sorted((resources.root() / "recipes" / "nemo").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"nemo_sdg_nemo_recipe_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, value in vars(module).items():
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                found[f"{file.stem}_{name}"] = value
    return found


for _name, _recipe in recipes().items():
    run.cli.factory(_recipe, target=llm.finetune, name=_name)
