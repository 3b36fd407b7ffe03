"""Reward models of transformers as scorers: our own after `convert --to hf`, and random ones of other kinds."""

from __future__ import annotations

import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
from ranks import run_ranks

from nemo_sdg.checkpoints.convert import convert
from nemo_sdg.config import ATTRIBUTES, MISSING, Score, Select
from nemo_sdg.console import Console
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.backends.hf import HfScorer, outputs_of
from nemo_sdg.engine.backends.local import LocalScorer
from nemo_sdg.engine.load import load_model
from nemo_sdg.errors import CheckpointError
from nemo_sdg.models.templates import OUTPUT_NAMES
from nemo_sdg.quality.selection import decide
from nemo_sdg.records import Response, Scored
from nemo_sdg.resources import resolve

transformers = pytest.importorskip("transformers")

TEMPLATE = "{% for m in messages %}<extra_id_1>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "reward"
    convert(str(resolve("package:examples/tiny/reward")), folder, "hf", Console(io.StringIO()))
    return folder


def llama(folder, tiny, *, labels: int = 1, template: str | None = TEMPLATE, pad: int | None = 0, kind: str = "Llama"):
    """A random model of one layer with the tiny world's tokenizer; its outputs differ visibly between inputs."""
    torch.manual_seed(labels)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, num_labels=labels, pad_token_id=pad,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def answered(index: int, response: str | None = None, **more) -> Response:
    messages = ({"role": "user", "content": f"Add {index} and {index * 7}"},)
    response = "x" * (1 + index * 5 % 17) if response is None else response
    return Response(f"p{index}#0", f"p{index}", 0, messages, response, extra={"kept": index}, **more)


def alone(folder, rows: list[Response], dtype=torch.float32) -> np.ndarray:
    """What transformers says of each conversation by itself, float [B, A]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, torch_dtype=dtype).eval()
    outputs = []
    for row in rows:
        turns = [*row.messages, {"role": "assistant", "content": row.response}]
        ids = tokenizer.apply_chat_template(turns, tokenize=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            outputs.append(model(ids).logits[0].numpy())
    return np.stack(outputs)


def local_scores(mesh, rows: list[Response]) -> dict[str, dict[str, float]]:
    model, tokenizer = load_model(resolve("package:examples/tiny/reward"), mesh, dtype="fp32", reward=True)
    return {row.id: row.scores for row in LocalScorer(model, tokenizer, mesh, Score(), {}).score(rows)}


def test_our_own_reward_model_gives_the_local_scores(tiny):
    rows = [answered(index) for index in range(24)]
    local = run_ranks(local_scores, rows)[0]
    scored = {row.id: row for row in HfScorer(tiny, dtype="fp32", batch_tokens=200).score(rows)}
    assert scored.keys() == local.keys() and len(scored) == 24
    for row in rows:
        assert vars(scored[row.id]) == {**vars(row), "scores": scored[row.id].scores}
        assert list(scored[row.id].scores) == list(ATTRIBUTES)
    theirs = np.array([[scored[name].scores[attribute] for attribute in ATTRIBUTES] for name in local])
    ours = np.array([[scores[attribute] for attribute in ATTRIBUTES] for scores in local.values()])
    assert np.ptp(ours, axis=0).min() > 0.01
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind, pad", [("Llama", 0), ("Llama", None), ("Bert", 0)])
def test_one_output_is_the_helpfulness_and_the_others_are_missing(tmp_path, tiny, kind, pad):
    """Also without a padding token, and where each token sees all others, padding too if nobody hides it."""
    rows = [answered(index) for index in range(12)]
    folder = llama(tmp_path / "model", tiny, pad=pad, kind=kind)
    scored = {row.id: row.scores for row in HfScorer(folder, batch_tokens=300).score(rows)}
    values = [scored[row.id]["helpfulness"] for row in rows]
    expected = alone(folder, rows)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(values, expected[:, 0], rtol=0, atol=1e-5)
    assert all(scored[row.id][name] == MISSING for row in rows for name in ATTRIBUTES[1:])


def test_a_scalar_goes_through_a_file_and_selection(tmp_path, tiny):
    rows = [answered(index) for index in range(8)]
    scored = list(HfScorer(llama(tmp_path / "llama", tiny)).score(rows))
    again = [Scored.from_row(json.loads(json.dumps(row.to_row()))) for row in scored]
    assert again == scored
    middle = sorted(row.scores["helpfulness"] for row in scored)[4]
    decisions = decide(again, Select(minimum={"helpfulness": middle}))
    assert sum(decision.kept for decision in decisions) == 4
    assert all(math.isclose(d.scalar, 0.3 * d.scores["helpfulness"]) for d in decisions)


def test_batches_hold_similar_lengths_and_no_more_tokens_than_allowed(tmp_path, tiny, monkeypatch):
    scorer = HfScorer(llama(tmp_path / "llama", tiny), batch_tokens=160)
    batches, forward = [], scorer._forward
    monkeypatch.setattr(scorer, "_forward", lambda rows: batches.append([len(row) for row in rows]) or forward(rows))
    rows = [answered(index) for index in range(30)] + [answered(99, "y" * 60)]
    assert len(list(scorer.score(rows))) == 31
    flat = [length for batch in batches for length in batch]
    assert flat == sorted(flat) and len(flat) == 31 and len(set(flat)) > 5
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert all(max(batch) * len(batch) <= 160 for batch in batches) and padded < 1.2 * sum(flat)
    assert len(batches) < 20


@pytest.mark.parametrize("dtype, atol", [("fp64", 2e-6), ("bf16", 0.1)])
def test_the_dtype_is_the_one_that_was_asked_for(tmp_path, tiny, dtype, atol):
    rows = [answered(index) for index in range(4)]
    folder = llama(tmp_path / "llama", tiny)
    scorer = HfScorer(folder, dtype=dtype)
    scored = {row.id: row.scores["helpfulness"] for row in scorer.score(rows)}
    assert scorer._load()[0].dtype == {"fp64": torch.float64, "bf16": torch.bfloat16}[dtype]
    expected = alone(folder, rows, torch.float64)[:, 0]
    np.testing.assert_allclose([scored[row.id] for row in rows], expected, rtol=0, atol=atol)


NAMED = dict(enumerate(("verbosity", "Helpfulness", "complexity", "coherence", "correctness")))


@pytest.mark.parametrize(
    "labels, slots",
    [
        (["LABEL_0"], {"helpfulness": 0}),
        (["good"], {"helpfulness": 0}),
        ([f"LABEL_{i}" for i in range(5)], dict(zip(ATTRIBUTES, range(5)))),
        ([f"LABEL_{i}" for i in range(9)], dict(zip(ATTRIBUTES, range(4, 9)))),
        (list(OUTPUT_NAMES), dict(zip(ATTRIBUTES, range(4, 9)))),
        (list(NAMED.values()), {name: [n.lower() for n in NAMED.values()].index(name) for name in ATTRIBUTES}),
    ],
)
def test_outputs_by_name_or_number(labels, slots):
    assert outputs_of(labels) == slots


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["1 star", "2", "3", "4", "5"], [*ATTRIBUTES[:4], "humor"]])
def test_a_classifier_of_another_kind_is_refused(labels):
    with pytest.raises(CheckpointError, match="no HelpSteer attributes") as error:
        outputs_of(labels, "here")
    assert f"{len(labels)} outputs: {labels[0].lower()}" in str(error.value)


def test_names_in_the_config_decide(tmp_path, tiny):
    rows = [answered(1)]
    folder = llama(tmp_path / "llama", tiny, labels=5)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): name for index, name in NAMED.items()}
    config["label2id"] = {name: index for index, name in NAMED.items()}
    (folder / "config.json").write_text(json.dumps(config))
    (row,) = HfScorer(folder).score(rows)
    expected = dict(zip([name.lower() for name in NAMED.values()], alone(folder, rows)[0]))
    assert row.scores == pytest.approx(expected, abs=1e-5)


def refused(folder, rows, **settings) -> dict[str, str]:
    return {row.id: str(row.error) for row in HfScorer(folder, **settings).score(rows) if isinstance(row, Refusal)}


def test_rows_that_cannot_be_scored_are_refused_and_the_others_scored(tmp_path, tiny):
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
    folder = llama(tmp_path / "llama", tiny, template=template)
    system = ({"role": "system", "content": "Be brief."}, *answered(3).messages)
    rows = [
        answered(0),
        answered(1, "z" * 300),
        answered(2, "<extra_id_2>"),
        Response("p3#0", "p3", 0, system, "x"),
        answered(4, " "),
    ]
    found = refused(folder, rows)
    assert sorted(found) == ["p1#0", "p2#0", "p3#0", "p4#0"]
    assert "longer than the context" in found["p1#0"] and "at most 128" in found["p1#0"]
    assert "a marker of the prompt format" in found["p2#0"]
    assert found["p3#0"] == "the chat template cannot express the conversation, found no system here"
    assert "has no text" in found["p4#0"]


def test_scores_that_are_not_finite_are_refused(tmp_path, tiny):
    from safetensors.torch import load_file, save_file

    folder = llama(tmp_path / "llama", tiny)
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["score.weight"].fill_(math.inf)
    save_file(weights, file, {"format": "pt"})
    assert refused(folder, [answered(0)]) == {"p0#0": "the scores are not finite"}


def test_a_language_model_is_no_reward_model(tmp_path, tiny):
    """transformers would put random numbers in place of the head and go on."""
    folder = llama(tmp_path / "llama", tiny)
    config = transformers.LlamaConfig.from_pretrained(folder)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="lacks weights of a reward model, found no score.weight"):
        list(HfScorer(folder).score([answered(0)]))


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path, tiny):
    with pytest.raises(CheckpointError, match="the tokenizer has no chat template"):
        list(HfScorer(llama(tmp_path / "llama", tiny, template=None)).score([answered(0)]))


def test_pickled_weights_and_folders_without_a_model_are_refused(tmp_path, tiny):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for path in (folder, tmp_path / "absent", tmp_path):
        with pytest.raises(CheckpointError, match="no model that transformers can load"):
            HfScorer(path)
    shutil.copytree(tiny, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="transformers cannot load it for sequence classification"):
        list(HfScorer(tmp_path / "broken").score([answered(0)]))


def test_the_identity_names_what_the_folder_holds(tmp_path, tiny):
    first, second = llama(tmp_path / "a", tiny), llama(tmp_path / "b", tiny)
    assert HfScorer(first).identity == HfScorer(second).identity != HfScorer(tiny).identity
    assert set(HfScorer(first).identity) == {"reward"} and len(HfScorer(first).identity["reward"]) == 16
    with open(second / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert HfScorer(first).identity != HfScorer(second).identity
    third = tmp_path / "third"
    shutil.copytree(second, third)
    (second / "config.json").write_text("{}")
    assert HfScorer(second).identity != HfScorer(third).identity
    (first / "chat_template.jinja").write_text("{{ messages }}")
    assert HfScorer(first).identity != HfScorer(llama(tmp_path / "c", tiny)).identity
