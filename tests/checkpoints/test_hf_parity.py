"""Our models against transformers' own on the same Hugging Face folders: logits, rewards, greedy text, and bits."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from plain_forward import forward, gather_vocabulary
from ranks import run_ranks
from safetensors.torch import load_file

from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.checkpoints.folder import ModelFolder
from nemo_sdg.checkpoints.load import fill
from nemo_sdg.console import Console
from nemo_sdg.engine.generate import Request, generate
from nemo_sdg.engine.load import load_model
from nemo_sdg.engine.sampling import Sampling
from nemo_sdg.engine.score import encode, score
from nemo_sdg.models.nemotron import build, transformer_config
from nemo_sdg.models.templates import OUTPUT_NAMES, instruct_prompt
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.resources import resolve

transformers = pytest.importorskip("transformers")

IDS = torch.randint(6, 384, (2, 24), generator=torch.Generator().manual_seed(7))
KINDS = {
    "grouped": dict(num_attention_heads=8, num_key_value_heads=2),
    "multi-head": dict(num_attention_heads=4, num_key_value_heads=4),
    "heads that are not hidden/heads": dict(num_attention_heads=6, num_key_value_heads=2, head_dim=20),
    "all of each head rotated": dict(num_attention_heads=4, num_key_value_heads=4, head_dim=6, partial_rotary_factor=1.0),
}  # fmt: skip
TOPOLOGIES = {"one": {}, "tp2": {"tp": 2}, "pp2": {"pp": 2}}
TORCH = {"fp32": torch.float32, "fp64": torch.float64}
DIALOGUES = [
    [{"role": "user", "content": text}]
    for text in ("Reverse the word abc", "Add 3 and 4", "Sort the letters of hgfa", "Count the letter a in abca")
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make(path, kind, dtype, seed, shard="5GB"):
    """A random model as transformers saves it; norms and biases are random too, so that every mistake shows."""
    torch.manual_seed(seed)
    config = transformers.NemotronConfig(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=4, max_position_embeddings=64,
        attn_implementation="sdpa", norm_eps=1e-5 * (seed + 1), **KINDS[kind],
    )  # fmt: skip
    model = transformers.NemotronForCausalLM(config).to(TORCH[dtype]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3) if parameter.dim() == 1 else parameter.mul_(6)
    model.save_pretrained(path, max_shard_size=shard)
    with torch.no_grad():
        return model(IDS).logits.numpy()


def logits(mesh, folder, dtype):
    folder = ModelFolder.open(folder)
    config = transformer_config(folder.shape, dtype=TORCH[dtype], tp=mesh.tp, pp=mesh.pp)
    model = build(config, folder.shape, pre_process=mesh.first_stage, post_process=mesh.last_stage)
    fill(model, folder, mesh)
    with torch.no_grad():
        local = forward(model.eval(), mesh, IDS)
        return None if local is None else torch.stack([gather_vocabulary(row, mesh, 384) for row in local]).numpy()


def assert_same_logits(folder, expected, dtype, **topology):
    results = [found for found in run_ranks(logits, folder, dtype, **topology) if found is not None]
    assert results and np.abs(expected).max() > 1, "logits near zero would agree by themselves"
    for found in results:
        np.testing.assert_allclose(found, expected, rtol=0, atol={"fp32": 1e-5, "fp64": 1e-10}[dtype])


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_same_logits_as_transformers(tmp_path, kind, seed, dtype):
    expected = make(tmp_path / "hf", kind, dtype, seed, shard="100KB" if seed else "5GB")
    assert (len(list((tmp_path / "hf").glob("*.safetensors"))) > 2) == (seed > 0)
    assert_same_logits(tmp_path / "hf", expected, dtype, **list(TOPOLOGIES.values())[seed])


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("to", ["release", "nemo2"])
def test_converted_and_back(tmp_path, to, topology):
    """The same logits from the converted folder, and the bits of the start from the way back."""
    tokenizer = resolve("package:examples/tiny/tokenizer.model")
    expected = make(tmp_path / "hf", "heads that are not hidden/heads", "fp64", 3, shard="100KB")
    quiet = Console(io.StringIO())
    convert(str(tmp_path / "hf"), tmp_path / to, to, quiet, tokenizer=tokenizer, tp=2)
    assert_same_logits(tmp_path / to, expected, "fp64", **TOPOLOGIES[topology])
    convert(str(tmp_path / to), tmp_path / "back", "hf", quiet)
    start = {k: v for file in (tmp_path / "hf").glob("*.safetensors") for k, v in load_file(file).items()}
    back = load_file(tmp_path / "back/model.safetensors")
    assert back.keys() == start.keys()
    assert all(torch.equal(back[name], start[name]) and back[name].dtype == start[name].dtype for name in start)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", torch_dtype="auto")
    assert theirs.dtype == torch.float64
    with torch.no_grad():
        np.testing.assert_array_equal(theirs.eval()(IDS).logits.numpy(), expected)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    for kind in ("instruct", "reward"):
        convert(str(resolve(f"package:examples/tiny/{kind}")), root / kind, "hf", Console(io.StringIO()))
    return root


def our_rewards(mesh, path, dialogues):
    model, tokenizer = load_model(path, mesh, dtype="fp32", reward=True)
    return score(model, tokenizer, mesh, [encode(tokenizer, dialogue, 256) for dialogue in dialogues])


def test_transformers_gives_our_rewards(tiny):
    dialogues = [[*d, {"role": "assistant", "content": "cba" * n}] for n, d in enumerate(DIALOGUES, start=1)]
    dialogues.append([{"role": "system", "content": "Be brief."}, *dialogues[0]])
    ours = run_ranks(our_rewards, resolve("package:examples/tiny/reward"), dialogues)[0]
    np.testing.assert_array_equal(run_ranks(our_rewards, tiny / "reward", dialogues)[0], ours)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "reward")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny / "reward", torch_dtype="float32")
    assert type(model).__name__ == "NemotronForSequenceClassification"
    assert tuple(model.config.id2label[slot] for slot in range(model.config.num_labels)) == OUTPUT_NAMES
    batch = tokenizer.apply_chat_template(dialogues, padding=True, return_tensors="pt", return_dict=True)
    assert batch["attention_mask"].min() == 0, "the rows are of different lengths"
    with torch.no_grad():
        theirs = model.eval()(**batch).logits.numpy()
    assert np.ptp(ours, axis=0)[4:].min() > 0.01
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-5)


def our_answers(mesh, path, dialogues):
    model, tokenizer = load_model(path, mesh, dtype="fp32")
    prompts = [tokenizer.encode(instruct_prompt(dialogue)) for dialogue in dialogues]
    requests = [Request(str(n), 0, prompt) for n, prompt in enumerate(prompts)]
    made = generate(model, tokenizer, mesh, requests, Sampling(max_tokens=60, temperature=0.0, seed=1), slots=4)
    return [(tokenizer.decode(answer.token_ids), answer.finish_reason) for answer in made]


def test_transformers_stops_where_we_stop_and_says_the_same(tiny):
    ours = run_ranks(our_answers, resolve("package:examples/tiny/instruct"), DIALOGUES)[0]
    assert run_ranks(our_answers, tiny / "instruct", DIALOGUES)[0] == ours
    assert {reason for _, reason in ours} == {"stop"} and len({text for text, _ in ours}) == len(ours)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "instruct")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny / "instruct", torch_dtype="float32").eval()
    pieces = Tokenizer(ModelFolder.open(tiny / "instruct").tokenizer)
    assert tuple(model.generation_config.eos_token_id) == pieces.stop_ids
    batch = tokenizer.apply_chat_template(
        DIALOGUES, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )  # fmt: skip
    length = batch["input_ids"].shape[1]
    with torch.no_grad():
        made = model.generate(**batch, max_new_tokens=60)[:, length:]
        alone = model.generate(batch["input_ids"][:1, batch["attention_mask"][0].argmax() :], max_new_tokens=60)
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in made] == [text for text, _ in ours]
    assert made.shape[1] < 60 and all(pieces.turn_id in row for row in made.tolist())
    assert alone[0, -1] == pieces.turn_id, "a single prompt without a mask ends at the end of the turn too"
