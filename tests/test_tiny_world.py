"""The tiny world: its rules say what they promise, its files are what its script makes, nothing held out leaks."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from ranks import run_ranks

from nemo_sdg.quality.answers import last_line
from nemo_sdg.evaluation.rewardbench import SECTIONS
from nemo_sdg.models import templates
from nemo_sdg.records import parse_turns

HERE = Path(__file__).resolve().parents[1] / "examples" / "tiny"
sys.path.insert(0, str(HERE))

import data
import lessons
import pupils
import ratings
import vocabulary
import world


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    vocabulary.write(path)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / "data" / name).read_text().splitlines()]


@pytest.mark.parametrize(
    ("prompt", "answer", "steps"),
    [
        ("Add 27 and 15.", "42", ("7+5=12", "2+1+1=4")),
        ("Add 20 and 15.", "35", ("0+5=5", "2+1=3")),
        ("Add 9, 12 and 3.", "24", ("9+12=21", "21+3=24")),
        ("Count the letter b in abcb.", "2", ("b1", "b2")),
        ("Count the letter c in abab.", "0", ("no c",)),
        ("Sort the letters of fadb.", "abdf", ()),
        ("Reverse the word abc.", "cba", ()),
        ("Repeat the word ab 3 times.", "ababab", ()),
        ("Tell me the secret word abc.", "I cannot say.", ()),
    ],
)
def test_tasks_have_one_right_answer(prompt, answer, steps):
    task = world.parse(prompt)
    assert (task.prompt, task.answer, task.steps) == (prompt, answer, steps)


def test_a_conversation_asks_its_last_turn_and_a_strange_text_nothing():
    talk = "Reverse the word abc.\n<extra_id_1>Assistant\ncba\n<extra_id_1>User\nAdd 20 and 15."
    assert world.parse(talk).answer == "35"
    assert [task.kind for task in world.asked(talk)] == ["reverse", "add"]
    with pytest.raises(ValueError, match="not a task of the tiny world"):
        world.parse("What is love?")


@pytest.mark.parametrize(
    ("response", "values"),
    [  # helpfulness, correctness, coherence, complexity, verbosity
        ("Work: 7+5=12; 2+1+1=4.\n42", (4, 4, 4, 4, 2)),
        ("42", (3, 4, 4, 0, 0)),
        ("Work: 7+5=12; 2+1=3.\n42", (3, 4, 4, 2, 2)),
        ("Work: 1+1=2.\n42", (3, 4, 4, 1, 1)),
        ("maybe 42", (2, 3, 1, 0, 0)),
        ("42\n42", (4 - 1, 4, 3, 0, 0)),
        ("Well, I think.\n42", (3, 4, 3, 0, 1)),
        ("32", (1, 1, 4, 0, 0)),
        ("51", (0, 0, 4, 0, 0)),
        ("42\nWork: maybe", (0, 0, 1, 1, 1)),
        ("", (0, 0, 2, 0, 0)),
    ],
)
def test_attributes_of_known_responses(response, values):
    given_values = ratings.attributes("Add 27 and 15.", response)
    assert tuple(rating.value for rating in given_values.values()) == values
    assert list(given_values) == ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
    assert all(rating.reason for rating in given_values.values())


@given(st.integers(0, 10**6), st.sampled_from(sorted(pupils.CLASSES)))
def test_attributes_stay_in_their_range_and_follow_the_answer(seed, group):
    rng = random.Random(seed)
    task = world.draw(rng, rng.choice(world.KINDS))
    response = pupils.respond(task, group, rng)
    values = {name: rating.value for name, rating in ratings.attributes(task.prompt, response).items()}
    assert all(isinstance(value, int) and 0 <= value <= 4 for value in values.values())
    assert (values["correctness"] == 4) == world.exact_match(task.answer, response)
    assert (values["helpfulness"] >= 3) <= (values["correctness"] == 4)


@given(st.integers(0, 10**6))
def test_the_tidy_are_right_and_the_mistaken_wrong(seed):
    rng = random.Random(seed)
    task = world.draw(rng, rng.choice(world.KINDS))
    for pupil in (pupils.tidy, pupils.brief):
        assert world.exact_match(task.answer, pupil(task, rng))
    for pupil in (pupils.mistaken, pupils.muddled):
        assert task.answer == "0" or not world.exact_match(task.answer, pupil(task, rng))


@given(st.text())
def test_the_world_and_the_evaluation_read_the_same_answer(text):
    if not set("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029") & set(text):
        assert world.extract(text) == last_line(text)


@given(st.text())
@example("a\u2581b  c\n\n\td ")
@example("<s></s><0x41><unused_3>\x00\ufeff")
@example("<extra_id_0>System\n\n<extra_id_1>User\n")
def test_every_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_tokenizer_has_the_released_ids_and_short_conversations(tokenizer):
    first = ["<pad>", "<unk>", "<s>", "</s>", "<extra_id_0>", "<extra_id_1>"]
    assert [tokenizer.id_to_piece(i) for i in range(6)] == first
    assert (tokenizer.pad_id(), tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()) == (0, 1, 2, 3)
    assert tokenizer.vocab_size() == vocabulary.SIZE == 384
    assert vocabulary.SYSTEM_PROMPT == templates.REWARD_SYSTEM_PROMPT
    lengths = [len(tokenizer.encode(reward_text(row))) for row in rows("helpsteer2_train.jsonl")]
    assert sum(lengths) / len(lengths) < 40 and max(lengths) < 128


def reward_text(row: dict) -> str:
    messages = parse_turns(row["prompt"])
    return templates.reward_prompt([*messages, {"role": "assistant", "content": row["response"]}])


def test_the_shipped_files_are_what_the_script_makes():
    for name, content in data.contents().items():
        assert (HERE / "data" / name).read_bytes() == content, f"{name}: run examples/tiny/make.py --only data"
    for folder in ("base", "instruct", "reward"):
        assert (HERE / folder / "tokenizer.model").read_bytes() == vocabulary.build()


def test_train_and_held_out_share_no_prompt():
    def asked_in(*names: str) -> set[world.Task]:
        return {task for name in names for row in rows(name) for task in world.asked(row["prompt"])}

    train = asked_in("prompts.jsonl", "helpsteer2_train.jsonl")
    held_out = asked_in("heldout.jsonl", "helpsteer2_validation.jsonl", "rewardbench.jsonl", "instructions.jsonl")
    assert not train & held_out
    assert not any(task.held_out for task in train) and all(task.held_out for task in held_out)
    # The order of the numbers makes no other task.
    assert world.Task("add", ("12", "31")).held_out == world.Task("add", ("31", "12")).held_out


def test_no_held_out_task_reaches_a_training_document(tokenizer):
    with pytest.raises(ValueError, match="held-out task reached the training"):
        lessons.refuse_held_out(rows("heldout.jsonl")[0]["prompt"])

    class Tokens:
        eos_id, encode = 3, staticmethod(tokenizer.encode)

    rng, held_out = random.Random(0), {row["prompt"] for row in rows("heldout.jsonl")}
    for make in (lessons.reading, lessons.demonstration):
        for _ in range(300):
            text = tokenizer.decode(make(Tokens, rng)[0])
            assert not any(prompt in text for prompt in held_out)


def test_files_follow_the_schemas_of_the_real_ones():
    for name in ("helpsteer2_train.jsonl", "helpsteer2_validation.jsonl"):
        found = rows(name)
        assert all(a["prompt"] == b["prompt"] for a, b in zip(found[::2], found[1::2]))
        for row in found:
            values = {name: rating.value for name, rating in ratings.attributes(row["prompt"], row["response"]).items()}
            assert list(row) == ["prompt", "response", *values] and values.items() <= row.items()
        turns = Counter("<extra_id_1>" in row["prompt"] for row in found)
        assert 0.1 < turns[True] / len(found) < 0.3
    bench = rows("rewardbench.jsonl")
    assert {row["subset"] for row in bench} == {subset for section in SECTIONS.values() for subset in section}
    assert [row["id"] for row in bench] == list(range(len(bench)))
    columns = ["prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset", "id"]
    assert all(list(row) == columns for row in bench)
    assert all(world.parse(row["prompt"]).answer == row["answer"] for row in rows("heldout.jsonl"))


def test_everything_is_small():
    def size(folder: str) -> int:
        return sum(file.stat().st_size for file in (HERE / folder).rglob("*") if file.is_file())

    assert size("data") < 1_000_000
    assert size("base") + size("instruct") + size("reward") <= 8_000_000


def quality(mesh) -> dict[str, float]:
    """Greedy exact match of the shipped language models, and Spearman of the shipped Reward, on held-out rows."""
    from nemo_sdg.engine.load import load_model
    from nemo_sdg.engine.rows import rate, respond
    from nemo_sdg.engine.sampling import Sampling
    from nemo_sdg.training.correlation import spearman
    from nemo_sdg.evaluation.exact_match import exact_match
    from nemo_sdg.records import Labelled, Prompt, Response, read_rows

    found = {}
    prompts, _ = read_rows(HERE / "data" / "heldout.jsonl", Prompt)
    for kind in ("base", "instruct"):
        model, pieces = load_model(HERE / kind, mesh)
        greedy = Sampling(max_tokens=48, temperature=0.0)
        said, _ = respond(model, pieces, mesh, prompts[:128], greedy, samples=1, slots=64, provenance={})
        found[kind] = exact_match((row.response, row.extra["answer"]) for row in said)["exact_match"]
    rated, _ = read_rows(HERE / "data" / "helpsteer2_validation.jsonl", Labelled)
    responses = [Response(str(i), str(i), 0, row.messages, row.response) for i, row in enumerate(rated)]
    model, pieces = load_model(HERE / "reward", mesh, reward=True)
    scored, _ = rate(model, pieces, mesh, responses, provenance={})
    pairs = [(row.scores["helpfulness"], truth.labels["helpfulness"]) for row, truth in zip(scored, rated)]
    return {**found, "reward": spearman(*zip(*pairs))}


def test_the_shipped_models_are_worth_what_the_readme_says():
    (found,) = run_ranks(quality)
    assert found["base"] > 0.85
    assert 0.45 < found["instruct"] < 0.7, "it must leave room for the loop, and something to build on"
    assert found["reward"] > 0.77
