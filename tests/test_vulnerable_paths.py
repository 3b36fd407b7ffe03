"""None of the code is reached that published weaknesses of the pinned NeMo and Megatron are in.

SECURITY.md lists those that are fixed in later lines only. Not a whole run comes there, not one that goes on after a
kill, and not the opening of what others made. Restart points are the one thing that NeMo and Megatron unpickle for us:
only ever files that the same run has written, in a folder that carries the mark of the very fit.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
from pathlib import Path

import hostile
import pytest
import torch
import traps
from ranks import run_ranks
from small_run import make_inputs, small_config, whole

from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.console import Console
from nemo_sdg.engine.load import build_chunks

ROOT = Path(__file__).resolve().parents[1]
_DATA, _IO = "nemo.collections.llm.gpt.data", "nemo.lightning.io"
_RESTORE = "nemo.core.connectors.save_restore_connector:SaveRestoreConnector"

PATHS: dict[str, tuple[str, ...]] = {
    "CVE-2026-65179": ("nemo.collections.common.tokenizers.tabular_tokenizer:TabularTokenizer.__init__",),
    "CVE-2026-65178": (
        f"{_RESTORE}.restore_from", f"{_RESTORE}.load_config_and_state_dict", f"{_RESTORE}._unpack_nemo_file",
        "nemo.core.classes.common:Serialization.from_config_dict", "nemo.core.classes.common:safe_instantiate",
        "hydra._internal.instantiate._instantiate2:instantiate", f"{_DATA}.core:create_sft_dataset",
    ),
    "CVE-2026-24239": (
        f"{_DATA}.core:GPTSFTDataset._load_dataset", f"{_DATA}.core:GPTSFTPackedDataset._load_dataset",
        f"{_DATA}.utils:_TextMemMapDataset.load_file", f"{_DATA}.utils:_get_samples_mapping",
        f"{_IO}.mixin:_safe_pickle_load", f"{_IO}.mixin:load", f"{_IO}.api:load_context",
        f"{_RESTORE}._load_state_dict_from_disk",
        "nemo.core.classes.mixins.adapter_mixins:AdapterModelPTMixin.load_adapters",
    ),
    "CVE-2026-65111": (),  # what the bulletin calls command injection: no program is started at all
    "CVE-2026-24267": (),  # not in the package
    "CVE-2026-65180": (
        "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_parameter_state",
        "megatron.core.optimizer.optimizer:ChainedOptimizer.load_parameter_state",
        "megatron.core.dist_checkpointing.strategies.common:TorchCommonLoadStrategy.load_sharded_objects",
        "torch.distributed.checkpoint.format_utils:torch_save_to_dcp",
    ),
    "CVE-2026-65110": (),  # the same words and the same family
    "CVE-2026-65104": (),  # not in this line
}  # fmt: skip
"""Where each is, as far as it was published; where it was not, the places of that kind. Nobody comes to any of them."""
OTHERS = (
    "yaml.constructor:FullConstructor.find_python_name", "yaml.constructor:FullConstructor.make_python_instance",
    "transformers.dynamic_module_utils:get_class_from_dynamic_module",
)  # fmt: skip
"""Other ways from data to code that the two packages use."""
FORBIDDEN = tuple(name for names in PATHS.values() for name in names) + OTHERS


def trapped() -> None:
    traps.forbid(FORBIDDEN)
    traps.watch()


def to_its_end(mesh, config, out, told):
    trapped()
    whole(mesh, config, out)
    traps.keep(told)


def killed_in_its_first_fit(mesh, config, out, told):
    from nemo_sdg.training.strategy import FitStrategy

    trapped()
    step = FitStrategy.training_step

    def training_step(self, *args, **kwargs):
        if self.trainer.global_step == 2:
            traps.keep(told)
            os._exit(9)
        return step(self, *args, **kwargs)

    FitStrategy.training_step = training_step
    whole(mesh, config, out)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was killed behind its second restart point, and a copy of it."""
    from nemo_sdg.training import nemo  # noqa: F401  (once, before any rank is forked)

    root = tmp_path_factory.mktemp("vulnerable")
    config = small_config(make_inputs(root))
    with pytest.raises(AssertionError, match="rank 0 ended without a result"):
        run_ranks(killed_in_its_first_fit, config, root / "run", root / "first.json")
    shutil.copytree(root / "run", root / "other")
    return root, config


def seen_in(file: Path) -> list[tuple[str, str]]:
    """What was done, without the objects that the ranks of the job have sent each other and classes of loads that are listed."""
    return [(what, which) for what, which in json.loads(file.read_text()) if what not in (traps.RANKS, traps.LOADED)]


def test_until_there_is_a_restart_point_nothing_is_unpickled_and_nobody_reached(run):
    root, _ = run
    assert (root / "run/round-0/.policy.fit/step-00000002/weights/common.pt").is_file()
    assert seen_in(root / "first.json") == []


def test_a_run_that_goes_on_unpickles_its_own_restart_point_and_nothing_else(run):
    """To the end of a second round, which starts from the models that the first one has trained."""
    root, config = run
    written = {str(file) for file in (root / "run").rglob("*") if file.is_file()}
    run_ranks(to_its_end, config, root / "run", root / "second.json")
    assert (root / "run/round-1/reward/training.json").is_file()
    seen = seen_in(root / "second.json")
    loads = {which for what, which in seen if what in ("torch.load", "pickle.load")}
    assert {what for what, _ in seen} == {"torch.load", "pickle.load"}, seen
    weights = f"{root}/run/round-0/.policy.fit/step-00000002/weights"
    files = {f"{weights}/common.pt", f"{weights}/.metadata"}
    assert loads == {*files, weights} and files <= written  # and what torch's reader of this folder reads besides


def test_a_restart_point_without_the_mark_of_the_fit_is_taken_away_unread(run):
    root, config = run
    work = root / "other/round-0/.policy.fit"
    for name in ("common.pt", ".metadata"):
        (work / "step-00000002/weights" / name).write_bytes(traps.bait(root / "sprung"))
    shutil.copytree(work / "step-00000002", work / "step-00000003")
    (work / "fit").write_text("0" * 16)
    config.run.rounds = 1
    run_ranks(to_its_end, config, root / "other", root / "third.json")
    assert (root / "other/round-0/policy/training.json").is_file()
    assert seen_in(root / "third.json") == [] and not (root / "sprung").exists()
    assert os.system(f"touch {root / 'sprung'}") == 0  # noqa: S605  (what the bait would have done)


def test_checkpoints_of_others_reach_none_of_it(tmp_path):
    """All formats, and in each the files that a loader of that format would unpickle, with a bait in them."""
    good = hostile.good_ones(tmp_path)
    cases = hostile.all_cases(good, tmp_path)
    paths = [*good.values(), *(case.path for case in cases if case.names is None)]
    refused = [case.path for case in cases if case.names is not None][::5]
    baits = [path for path in paths if path.is_dir() and any(b"system" in f.read_bytes() for f in path.rglob("*") if f.is_file())]
    assert len(paths) > 10 and len(baits) > 5 and len(refused) > 20

    def opened(mesh):
        (model,) = build_chunks(ModelFolder.open(good["release"]).shape, mesh, dtype=torch.bfloat16)
        trapped()
        for number, path in enumerate(paths):
            assert hostile.opened(path) == "good", path
            fill(model, ModelFolder.open(path), mesh)
            to = "hf" if ModelFolder.open(path).contents.format == "release" else "release"
            convert(str(path), tmp_path / f"converted-{number}", to, Console(io.StringIO()))
        for path in refused:
            assert hostile.opened(path) != "good", path
        return traps.seen

    assert run_ranks(opened) == [[]]
    assert not hostile.canary(tmp_path).exists()


def test_the_traps_work(tmp_path):
    """Each place is there in the installed packages, and whoever comes to it is seen, also by another name of it."""
    from nemo.collections.common.tokenizers.tabular_tokenizer import TabularTokenizer

    (tmp_path / "bait").write_bytes(traps.bait(tmp_path / "sprung"))

    def come(mesh):
        trapped()
        for name in FORBIDDEN:
            with pytest.raises(RuntimeError, match=re.escape(f"{name} was reached")):
                traps.function(name)(1, 2, x=3)
        with pytest.raises(RuntimeError, match="was reached"):
            TabularTokenizer(str(tmp_path / "bait"))
        reached = list(traps.seen)
        with open(tmp_path / "bait", "rb") as file:
            hostile.pickle.load(file)
        with pytest.raises(Exception, match="(?i)weights"):
            torch.load(tmp_path / "bait")
        return reached, traps.seen[len(reached) :]

    reached, loaded = run_ranks(come)[0]
    assert reached == [("reached", name) for name in (*FORBIDDEN, FORBIDDEN[0])]
    assert (tmp_path / "sprung").exists()
    bait = str(tmp_path / "bait")
    assert [one for one in loaded if one[0].endswith("load")] == [("pickle.load", bait), ("torch.load", bait)]
    assert any(what == "os.system" for what, _ in loaded) and (traps.LOADED, "posix.system") in loaded


def test_what_is_not_installed_is_not():
    """The speech data explorer is a tool beside NeMo's package; Megatron's inference has no cache that goes by hashes yet."""
    nemo, megatron = (Path(importlib.util.find_spec(name).submodule_search_locations[0]) for name in ("nemo", "megatron.core"))
    assert not [path for path in nemo.rglob("*") if "data_explorer" in path.name]
    sources = list((megatron / "inference").rglob("*.py"))
    assert len(sources) > 20 and not [path for path in sources if "hash" in path.read_text(encoding="utf-8").lower()]


def test_the_list_is_that_of_security_md():
    told = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = {row.split("|")[1].strip(): row for row in told.splitlines() if row.startswith("| CVE-")}
    assert set(rows) == set(PATHS) and len(PATHS) == 8
    for cve, names in PATHS.items():
        for name in names:
            last = name.rpartition(":")[2].split(".")
            assert any(part in rows[cve] for part in (last[0], last[-1])), f"{cve}: SECURITY.md does not name {name}"
