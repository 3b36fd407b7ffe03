"""One checkpoint under any grid: each rank's parameters are its cut of the whole model, and the logits are the same."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from cuts import cut_of
from folders import make_model, make_tokenizer, small_shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_forward import forward, gather_vocabulary
from ranks import run_ranks

from nemo_sdg.checkpoints import save
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.engine.load import build_chunks, load_model
from nemo_sdg.errors import TopologyError
from nemo_sdg.models.stages import stage_layers
from nemo_sdg.parallel.lone import lone_rank
from nemo_sdg.parallel.topology import Grid

SHAPE = replace(
    small_shape(), num_layers=8, hidden_size=48, ffn_hidden_size=64, num_attention_heads=8, num_query_groups=4,
    kv_channels=8, vocab_size=389,
)  # fmt: skip
EIGHT_GROUPS = replace(SHAPE, num_query_groups=8)
IDS = torch.randint(6, 389, (2, 16), generator=torch.Generator().manual_seed(3))


def whole_model(mesh, path, shape, tokenizer, reward):
    """Writes a model on one rank; its parameters, as bf16 keeps them."""
    model = make_model(mesh, shape, reward=reward, seed=11)
    save.save(model, path, shape, tokenizer.read_bytes(), mesh)
    return {name: value.detach().bfloat16().float().numpy() for name, value in model.named_parameters()}


def save_again(mesh, start, path, shape, tokenizer):
    """The same model from a grid of these ranks: other chunks, the last ones over the edge of the vocabulary."""
    model, _ = load_model(start, mesh)
    save.save(model, path, shape, tokenizer.read_bytes(), mesh)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(whole parameters, folders of the same model saved at tp 1 and tp 4) by the kind of model."""
    root = tmp_path_factory.mktemp("topologies")
    tokenizer = make_tokenizer(root / "t.model")
    found = {}
    for kind, shape, reward in (("policy", SHAPE, False), ("reward", SHAPE, True), ("eight", EIGHT_GROUPS, False)):
        whole = run_ranks(whole_model, root / kind, shape, tokenizer, reward)[0]
        found[kind] = whole, [root / kind]
    run_ranks(save_again, root / "policy", root / "policy-4", SHAPE, tokenizer, tp=4)
    found["policy"][1].append(root / "policy-4")
    return found


def wrong_parameters(_, shape, folder, whole, tp, pp, ends, vp, reward):
    """(names that differ from the whole model's cut, global names that some rank holds), over all ranks."""
    wrong, held = [], []
    for pp_rank in range(pp):
        for tp_rank in range(tp):
            with lone_rank(Grid(tp, pp, **ends), pp_rank * tp + tp_rank, vp) as mesh:
                parts = build_chunks(shape, mesh, dtype=torch.float32, reward=reward, virtual_stages=vp)
                with torch.no_grad():
                    for parameter in (p for part in parts for p in part.parameters()):
                        parameter.fill_(float("nan"))
                fill(parts, ModelFolder.open(folder), mesh)
                for part in parts:
                    for name, value in part.named_parameters():
                        pieces = name.split(".")
                        if "layers" in pieces:
                            pieces[2] = str(part.decoder.layers[int(pieces[2])].layer_number - 1)
                        name = ".".join(pieces)
                        held += [name] if tp_rank == 0 else []
                        if not np.array_equal(value.detach().numpy(), cut_of(whole[name], name, tp, tp_rank)):
                            wrong.append((tp_rank, pp_rank, name))
    return wrong, held


CASES = {
    "tp2": dict(tp=2),
    "tp4": dict(tp=4),
    "pp2 uneven": dict(pp=2, first=3),
    "pp2 both ends": dict(pp=2, first=1, last=7),
    "pp3 uneven": dict(pp=3, first=2, last=3),
    "pp4 uneven, tp2": dict(tp=2, pp=4, first=1, last=1),
    "pp2 virtual": dict(pp=2, vp=2),
    "pp2 virtual, tp2": dict(tp=2, pp=2, vp=4),
    "pp2 virtual, uneven": dict(pp=2, first=2, last=6, vp=2),
    "pp3 virtual, uneven": dict(pp=3, last=4, vp=2),
}


def check(made, kind, saved, *, tp=1, pp=1, vp=1, first=None, last=None):
    whole, folders = made[kind]
    shape = EIGHT_GROUPS if kind == "eight" else SHAPE
    ends = {"first_stage_layers": first, "last_stage_layers": last}
    arguments = (shape, folders[saved], whole, tp, pp, ends, vp, kind == "reward")
    wrong, held = run_ranks(wrong_parameters, *arguments)[0]
    assert not wrong, f"{len(wrong)} parameters differ, among them {wrong[:3]}"
    assert sorted(held) == sorted(whole), "each parameter is held by one stage"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("saved", [0, 1], ids=["saved at tp1", "saved at tp4"])
def test_each_parameter_is_the_cut_of_the_whole_model(made, name, saved):
    check(made, "policy", saved, **CASES[name])


def test_a_reward_model_too(made):
    check(made, "reward", 0, tp=4, pp=3, first=3, last=1)
    check(made, "reward", 0, tp=2, pp=2, vp=2)


@pytest.mark.parametrize("pp", [1, 2])
def test_one_group_for_each_of_eight_ranks(made, pp):
    check(made, "eight", 0, tp=8, pp=pp)


def fits(pp, vp, first, last):
    try:
        return bool(stage_layers(SHAPE.num_layers, pp, first=first, last=last, vp=vp))
    except TopologyError:
        return False


ENDS = (None, *range(1, 7))
GRIDS = [grid for grid in itertools.product(range(1, 9), range(1, 5), ENDS, ENDS) if fits(*grid)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([1, 2, 4]), st.sampled_from(GRIDS), st.integers(0, 1))
def test_any_other_grid(made, tp, grid, saved):
    pp, vp, first, last = grid
    check(made, "policy", saved, tp=tp, pp=pp, vp=vp, first=first, last=last)


def logits(mesh, folder):
    model, _ = load_model(folder, mesh, dtype="fp64")
    with torch.no_grad():
        local = forward(model, mesh, IDS)
        if local is None:
            return None
        return gather_vocabulary(local.flatten(0, 1), mesh, model.vocab_size).numpy()


def test_uneven_stages_give_the_same_logits(made):
    _, (folder, other) = made["policy"]
    reference = run_ranks(logits, folder)[0]
    assert np.abs(reference).max() > 1 and reference.shape == (IDS.numel(), 389)
    for grid in (
        dict(pp=2, first_stage_layers=3),
        dict(pp=2, last_stage_layers=1),
        dict(pp=3, first_stage_layers=1, last_stage_layers=3),
        dict(pp=4, first_stage_layers=1, last_stage_layers=1),
        dict(tp=2, pp=2, first_stage_layers=5, last_stage_layers=3),
    ):
        found = [result for result in run_ranks(logits, other, **grid) if result is not None]
        assert len(found) == grid.get("tp", 1)
        for result in found:
            np.testing.assert_allclose(result, reference, rtol=0, atol=1e-10, err_msg=str(grid))


def test_what_does_not_fit_is_told_before_the_model_is_built(made):
    def refused(mesh):
        with pytest.raises(TopologyError) as caught:
            load_model(made["policy"][1][0], mesh)
        return str(caught.value)

    told = run_ranks(refused, pp=3, last_stage_layers=3)[0]
    assert told == (
        "topology: the model's 8 layers do not fill the stages, found 3 in the last of 3 stages, expected a multiple "
        "of 2 left for the others, and at least one layer in each stage; set topology.pp, or "
        "topology.first_stage_layers=2 and topology.last_stage_layers=3"
    )
