"""examples/container/install.sh in a throw-away environment that plays an image: its torch is another one, and stays."""

from __future__ import annotations

import importlib.metadata
import json
import os
import site
import subprocess
import venv
from pathlib import Path

import pytest
from processes import ROOT

SCRIPT = ROOT / "examples/container/install.sh"
TORCH, NEMO = "2.7.0a0+79aa17489c.nv25.04", "2.6.0rc0"
"""What the image has: both are other versions than those that the package asks for."""


@pytest.fixture
def image(tmp_path) -> Path:
    """An environment with all that is installed here, and a torch and a NeMo of its own before that."""
    venv.create(tmp_path / "image", with_pip=False, symlinks=True)
    (own,) = (tmp_path / "image").glob("lib/python*/site-packages")
    for name, version in (("torch", TORCH), ("nemo_toolkit", NEMO)):
        folder = own / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (folder / "RECORD").write_text("")
        (folder / "INSTALLER").write_text("pip\n")
    (own / "here.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return tmp_path / "image/bin/python"


def install(python: Path, report: Path, **more: str) -> tuple[str, list[str]]:
    """(what the script says, what would be installed)."""
    environment = {**os.environ, "PYTHON": str(python), "DRY_RUN": str(report), "PIP_NO_INDEX": "1", **more}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(file.read_text())["install"] for file in report.parent.glob(report.name + "*")]
    return done.stdout, [f"{one['metadata']['name']} {one['metadata']['version']}" for some in found for one in some]


def test_the_torch_of_the_image_stays(image, tmp_path):
    said, installed = install(image, tmp_path / "report.json")
    assert installed == ["nemo-sdg 0.1.0"]
    assert f"left as it is: torch {TORCH} (the package asks for >=2.8)" in said
    assert f"left as it is: nemo_toolkit {NEMO} (the package asks for ==2.7.3)" in said
    seen = "import importlib.metadata as m; print(m.version('torch'))"
    assert subprocess.run([image, "-c", seen], capture_output=True, text=True).stdout.strip() == TORCH


def test_pip_alone_would_not_leave_it(image):
    """The check above can fail: without the script the same environment wants another torch."""
    done = subprocess.run(
        [image, "-m", "pip", "install", "--dry-run", "--no-index", "--no-build-isolation", "--quiet", ROOT],
        capture_output=True, text=True, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode != 0 and "nemo_toolkit[core,run]==2.7.3" in done.stderr.replace("nemo-toolkit", "nemo_toolkit")


def test_what_is_missing_is_named_to_pip_with_all_that_is_there_held(image, tmp_path):
    """Without an index pip cannot find it, and says its name: so it was asked for, and nothing else was."""
    (own,) = image.parents[1].glob("lib/python*/site-packages")
    kept = [path for path in site.getsitepackages()]
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for path in kept:
        for entry in Path(path).iterdir():
            if "rensa" not in entry.name:
                (hidden / entry.name).symlink_to(entry)
    (own / "here.pth").write_text(f"{hidden}\n")
    environment = {**os.environ, "PYTHON": str(image), "DRY_RUN": str(tmp_path / "r.json"), "PIP_NO_INDEX": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "No matching distribution found for rensa" in done.stderr and "torch==" not in done.stderr


def test_the_pair_that_training_wants_is_read_from_the_probe(image, tmp_path):
    environment = {**os.environ, "PYTHON": str(image), "DRY_RUN": str(tmp_path / "r.json"), "PIP_NO_INDEX": "1", "PAIR": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True)
    assert "nemo-toolkit==2.7.3" in done.stderr, done.stderr


def test_what_the_probe_says_in_such_an_image(image):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom nemo_sdg.training import probe\nprobe.check()"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([image, "-c", code], capture_output=True, text=True, env=environment)
    here = importlib.metadata.version("megatron-core").partition("+")[0]
    assert done.stderr.splitlines()[-1].endswith(
        f"python environment: training runs with one pair of versions, found nemo-toolkit {NEMO} with megatron-core {here}, "
        "expected nemo-toolkit 2.7.3 with megatron-core 0.15.3; pip install --no-deps nemo-toolkit==2.7.3 "
        "megatron-core==0.15.3, which leaves the torch that is there"
    )
