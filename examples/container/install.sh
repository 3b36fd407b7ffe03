#!/bin/bash
# Installs this package into an NVIDIA NeMo container, without changing what the image brings: its torch, NCCL,
# TransformerEngine and NeMo are built for each other, and wheels from an index would put others in their place.
#
#   examples/container/install.sh            run inside the image, in a clone of this repository
#   PAIR=1 examples/container/install.sh     also puts in the NeMo and megatron-core that training runs with, and nothing else
#   DRY_RUN=report.json ...                  says what would be installed (pip's report), and installs nothing
#
# The images of NVIDIA pair NeMo with another megatron-core than the one that training here is built against. Generation,
# scoring and serving need megatron-core alone; `nemo-sdg run` says which pair training wants before it trains.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Everything that is there keeps its version, local builds such as 2.8.0a0+nv25.05 too.
"$python" -m pip list --format=freeze --disable-pip-version-check > "$work/held.txt"

# What the package asks for and the image lacks; what it has in another version stays, and is told.
"$python" - "$work/missing.txt" <<'PYTHON'
import sys
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement  # every image has pip

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

missing = []
for text in tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]:
    wanted = Requirement(text)
    try:
        there = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        missing.append(text)
        continue
    if not wanted.specifier.contains(there, prereleases=True):
        print(f"left as it is: {wanted.name} {there} (the package asks for {wanted.specifier})")
Path(sys.argv[1]).write_text("".join(f"{text}\n" for text in missing))
PYTHON

options=(--disable-pip-version-check --constraint "$work/held.txt")
wanted=(--no-build-isolation --no-deps .)
if [ -n "${DRY_RUN:-}" ]; then
    options+=(--dry-run --quiet)
fi
if [ -s "$work/missing.txt" ]; then
    "$python" -m pip install "${options[@]}" ${DRY_RUN:+--report "$DRY_RUN.missing"} --requirement "$work/missing.txt"
fi
"$python" -m pip install "${options[@]}" ${DRY_RUN:+--report "$DRY_RUN"} "${wanted[@]}"
if [ -n "${PAIR:-}" ]; then
    # Both are replaced on purpose, so the versions that are there must not hold them; --no-deps leaves all else alone.
    mapfile -t pair < <("$python" - <<'PYTHON'
import ast
from pathlib import Path

(pair,) = (
    ast.literal_eval(node.value)
    for node in ast.parse(Path("nemo_sdg/training/probe.py").read_text()).body
    if isinstance(node, ast.Assign) and node.targets[0].id == "SUPPORTED"
)
print("\n".join(f"{name}=={version}" for name, version in pair.items()))
PYTHON
    )
    "$python" -m pip install --disable-pip-version-check --no-deps --no-build-isolation \
        ${DRY_RUN:+--dry-run --quiet --report "$DRY_RUN.pair"} "${pair[@]}"
fi
