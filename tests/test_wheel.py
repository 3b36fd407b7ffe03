"""The wheel: it stands alone, holds its recipes and its world inside the package, and runs in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = (
    "nemo_sdg",
    "recipes",
    "conf",
    "examples",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


def call(*words: object, cwd: Path, **env: str) -> str:
    told = subprocess.run(
        list(map(str, words)), cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=600
    )
    assert told.returncode == 0, (told.stdout + told.stderr)[-4000:]
    return told.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:  # a copy: building writes beside the sources
        if (REPOSITORY / name).is_dir():
            shutil.copytree(
                REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis")
            )
        else:
            shutil.copy(REPOSITORY / name, source / name)
    quiet = ("--no-deps", "--no-build-isolation", "--no-index", "-q")
    call(sys.executable, "-m", "pip", "wheel", *quiet, "-w", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """A folder with the installed wheel, apart from the repository."""
    target = wheel.parent / "site"
    call(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        "--target",
        target,
        wheel,
        cwd=target.parent,
    )
    return target


def test_the_wheel_has_one_top_level_name_and_carries_its_data_inside(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"nemo_sdg"}
    for folder in ("recipes", "conf", "examples/tiny"):
        tracked = [f.relative_to(REPOSITORY) for f in (REPOSITORY / folder).rglob("*") if f.is_file()]
        missing = [f for f in tracked if not skipped(f) and f"nemo_sdg/_data/{f}" not in names]
        assert tracked and not missing, missing[:5]
    parts = {f"nemo_sdg/{f.relative_to(REPOSITORY / 'nemo_sdg')}" for kind in ("css", "html", "js") for f in (REPOSITORY / "nemo_sdg").rglob(f"*.{kind}")}
    assert {Path(name).name for name in parts} >= {"page.css", "selection.js"} and parts <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc") or ".hypothesis" in name]


def skipped(file: Path) -> bool:
    return file.suffix == ".pyc" or any(part in ("__pycache__", ".hypothesis") for part in file.parts)


def test_the_installed_package_finds_its_own_data_and_not_the_repositorys(site: Path, tmp_path: Path):
    code = (
        "import nemo_sdg; from nemo_sdg import resources, config\n"
        "print(nemo_sdg.__file__, resources.root(), sorted(resources.recipes()), sep='\\n')\n"
        "print(resources.resolve(config.load('tiny').models.instruct))\n"
        "print(resources.resolve('package:conf/sizes.yaml'))"
    )
    told = call(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    package, root, recipes, model, sizes = told.splitlines()
    assert Path(package).is_relative_to(site) and Path(root) == site / "nemo_sdg" / "_data"
    assert recipes == "['minitron_4b', 'nemotron4_15b', 'nemotron4_340b', 'tiny']"
    assert Path(model).is_relative_to(root) and Path(sizes).is_relative_to(root)


def test_the_installed_package_runs_the_tiny_world_in_an_empty_folder(site: Path, tmp_path: Path):
    small = ("run.rounds=1", "data.prompts_per_round=16", "sft.steps=2", "reward.steps=2", "select.minimum={}")
    words = ("-m", "nemo_sdg", "run", "tiny", *small, "--out", "demo")
    call(sys.executable, *words, cwd=tmp_path, PYTHONPATH=str(site))
    assert (tmp_path / "demo/round-0/evaluation.json").is_file() and (tmp_path / "demo/run.yaml").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo"]
    call(sys.executable, "-m", "nemo_sdg", "report", "demo", cwd=tmp_path, PYTHONPATH=str(site))
    assert "Selection.decide" in (tmp_path / "demo/report.html").read_text()
