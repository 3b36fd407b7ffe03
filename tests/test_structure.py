"""The picture of who may import whom, held against the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nemo_sdg"

# A room may import those of a lower floor and its own. quality and synthesis stand beside: rows and settings only.
FLOORS = (
    ("errors",),
    ("console",),
    ("hub", "resources"),
    ("config",),
    ("records", "store"),
    ("quality", "synthesis"),
    ("parallel",),
    ("models", "checkpoints"),
    ("engine",),
    ("training",),
    ("evaluation",),
    ("stages",),
    ("session",),
    ("serve",),
    ("loop", "plan"),
    ("dry_run",),
    ("verbs", "file_verbs", "evaluate_verb", "folder_verbs", "select_verb", "row_commands", "download", "fork", "tracing",
     "clean", "calibrate", "show"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LIGHT = ("cli", "row_commands", "show", "config", "errors", "records", "resources", "store", "console", "quality", "plan")
LIGHT += ("download", "hub", "hub.cache", "fork", "synthesis", "synthesis.plans")
LIGHT += ("engine.requests", "engine.backends.endpoint")
LIGHT += ("models.shapes", "models.templates", "checkpoints.names", "checkpoints.hf", "checkpoints.hf.writer")
LIGHT += ("serve.command", "serve.launch", "serve.protocol", "serve.replies", "serve.text", "serve.desk")
LIGHT += ("checkpoints.nemo2", "checkpoints.convert", "checkpoints.verify", "checkpoints.tar", "folder_verbs", "select_verb")
LIGHT += ("evaluate_verb", "evaluation.files", "evaluation.rewardbench", "evaluation.instructions", "evaluation.tables")
LIGHT += ("evaluation.report", "evaluation.report.page", "stages.examples", "stages.shapes", "stages.card", "tracing", "clean")
STAGES = ("start", "prompts", "generate", "score", "judge", "select", "revise", "compare", "assemble", "train", "evaluate", "ablate")
HEAVY = ("torch", "megatron", "nemo", "lightning", "pytorch_lightning")


def modules() -> dict[str, Path]:
    """Dotted name below nemo_sdg -> file."""
    files = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if "_data" not in parts and parts != ("__init__",):
            files[".".join(part for part in parts if part != "__init__")] = file
    return files


def imported(file: Path, *, also_for_types: bool = False) -> list[tuple[str, int, bool]]:
    """(dotted name, line, whether at the top of the module) of every import."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node

    def inside(node: ast.AST, kind: type) -> bool:
        return hasattr(node, "parent") and (isinstance(node.parent, kind) or inside(node.parent, kind))

    def for_types(node: ast.AST) -> bool:
        if not hasattr(node, "parent"):
            return False
        above = node.parent
        return (isinstance(above, ast.If) and "TYPE_CHECKING" in ast.unparse(above.test)) or for_types(above)

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        if also_for_types or not for_types(node):
            top = not inside(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            found += [(name, node.lineno, top) for name in names]
    return found


def room(name: str) -> str:
    return name.removeprefix("nemo_sdg.").split(".")[0]


def test_every_room_has_a_floor():
    rooms = {room(name) for name in modules()}
    assert rooms <= set(FLOOR), f"put {rooms - set(FLOOR)} into FLOORS, where DESIGN section 2 has it"
    assert {"cli", "loop", "stages", "engine", "models", "parallel", "store", "quality", "training"} <= rooms


def test_nothing_points_back_up():
    wrong = []
    for name, file in modules().items():
        for target, line, _ in imported(file, also_for_types=False):
            if not target.startswith("nemo_sdg.") or room(target) not in FLOOR:
                continue
            if FLOOR[room(target)] > FLOOR[room(name)]:
                wrong.append(f"{file.name}:{line}: {name} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_quality_and_synthesis_know_rows_and_settings_only():
    for name, file in modules().items():
        if room(name) in ("quality", "synthesis"):
            for target, line, _ in imported(file):
                if target.startswith("nemo_sdg"):
                    allowed = ("records", "config", "errors", "resources", room(name))
                    assert room(target) in allowed, f"{file}:{line}: {target}"


def test_no_stage_imports_another():
    for name, file in modules().items():
        if room(name) == "stages":
            for target, line, _ in imported(file):
                other = target.removeprefix("nemo_sdg.stages.").split(".")[0]
                assert other not in STAGES or not target.startswith("nemo_sdg.stages."), f"{file}:{line}: {target}"


def test_nemo_and_lightning_are_imported_in_training_alone():
    for name, file in modules().items():
        for target, line, _ in imported(file, also_for_types=True):
            if target.split(".")[0] in ("nemo", "lightning", "pytorch_lightning", "nemo_run"):
                assert room(name) == "training", f"{file}:{line}: {target}"


def test_light_rooms_import_nothing_heavy_even_inside_functions_unless_a_verb_needs_it():
    for name, file in modules().items():
        if any(name == light or name.startswith(light + ".") for light in LIGHT):
            for target, line, top in imported(file):
                assert not (top and target.split(".")[0] in HEAVY), f"{file}:{line}: {target}"


@pytest.mark.parametrize("name", LIGHT)
def test_light_rooms_load_without_torch(name: str):
    code = f"import sys, nemo_sdg.{name}; print([m for m in {HEAVY} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert told.stdout.strip() == "[]", told.stdout + told.stderr


def test_models_parallel_checkpoints_and_engine_do_without_nemo():
    """They also run where NeMo is not installed."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('nemo', 'lightning', 'pytorch_lightning', 'nemo_run')))\n"
        "import importlib\n"
        f"for name in {[n for n in modules() if room(n) in ('models', 'parallel', 'checkpoints', 'engine')]}:\n"
        "    importlib.import_module('nemo_sdg.' + name)\n"
        "print('fine')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert told.stdout.strip().endswith("fine"), told.stderr[-2000:]


def test_only_the_store_and_few_named_others_write_files():
    """Rows and what looks finished go through the store; the others write logs, pages and checkpoints of their own."""
    assert not [
        f"{file}:{number}"
        for name, file in modules().items()
        if room(name) in ("quality", "synthesis", "records", "config", "stages", "loop")
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if any(word in line for word in ("write_text(", "write_bytes(", '"w")', '"wb")', '"a")'))
    ]


def test_files_stay_small():
    lines = {name: len(file.read_text().splitlines()) for name, file in modules().items()}
    too_long = {name: count for name, count in lines.items() if count > 300}
    assert not too_long
    assert lines.get("loop", 0) <= 150
    assert sorted(lines.values())[len(lines) // 2] <= 150
