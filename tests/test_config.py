"""Settings: every recipe loads, every word of a user is either obeyed or refused by name."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_sdg import config, resources
from nemo_sdg.config import RunConfig, load
from nemo_sdg.config.loading import override
from nemo_sdg.errors import ConfigError

PACKAGE = Path(config.__file__).parent.parent


def refusal(*overrides: str, recipe: str = "tiny") -> str:
    with pytest.raises(ConfigError) as caught:
        load(recipe, list(overrides))
    return str(caught.value)


def test_every_recipe_in_the_folder_is_a_valid_config_of_its_own_name():
    names = list(resources.recipes())
    assert names == ["minitron_4b", "nemotron4_15b", "nemotron4_340b", "tiny"]
    for name in names:
        assert load(name).run.name == name


def test_words_change_single_fields_and_nothing_else():
    plain, changed = (
        config.flatten(load("tiny")),
        config.flatten(
            load(
                "tiny",
                ["generate.samples=7", "sft.learning_rate=1e-3", "select.minimum.helpfulness=2", "reward={steps: 3}"],
            )
        ),
    )
    different = {key: value for key, value in changed.items() if plain[key] != value}
    assert different == {
        "generate.samples": 7,
        "sft.learning_rate": 1e-3,
        "select.minimum.helpfulness": 2.0,
        "reward.steps": 3,
    }


def test_a_whole_mapping_replaces_and_a_dotted_key_adds():
    assert load("tiny", ["select.minimum={}"]).select.minimum == {}
    assert load("tiny", ["select.minimum={coherence: 1}"]).select.minimum == {"coherence": 1.0}
    added = load("tiny", ["select.minimum.coherence=1"]).select.minimum
    assert added == {**load("tiny").select.minimum, "coherence": 1.0}


def test_text_stays_as_typed():
    assert load("tiny", ["run.name=2026-01-01"]).run.name == "2026-01-01"
    assert load("tiny", ["run.name=yes"]).run.name == "yes"
    assert load("tiny", ["data.helpsteer2=null"]).data.helpsteer2 is None


def test_an_unknown_recipe_names_those_that_exist_and_the_nearest():
    message = refusal(recipe="tinny")
    assert "minitron_4b, nemotron4_15b, nemotron4_340b, tiny" in message and "nearest is tiny" in message


@pytest.mark.parametrize(
    "word, parts",
    [
        ("generate.sampels=3", ("command line", "generate.sampels", "nearest valid key is generate.samples")),
        ("samples=3", ("command line", "'samples'", "nearest valid key is")),
        ("select.minimum.helpfulness.x=3", ("unknown key",)),
        ("select.minimum.helpfulnes=3", ("select.minimum.helpfulnes", "nearest is helpfulness")),
        ("select.weights.quality=3", ("unknown attribute", "one of helpfulness, correctness")),
        ("generate.samples=many", ("generate.samples", "'many'", "a whole number")),
        ("generate.samples=1.5", ("generate.samples", "1.5")),
        ("generate.samples=true", ("generate.samples", "True")),
        ("generate.samples=0", ("generate.samples", "found 0", "at least 1")),
        ("generate.temperature=-0.1", ("generate.temperature",)),
        ("generate.temperature=.nan", ("not finite", "generate.temperature")),
        ("select.minimum.helpfulness=.inf", ("not finite", "select.minimum.helpfulness")),
        ("generate.top_p=0", ("generate.top_p", "above 0 and up to 1")),
        ("generate.top_p=1.01", ("generate.top_p",)),
        ("topology.tp=0", ("topology.tp",)),
        ("topology.sequence_parallel=true", ("topology.sequence_parallel", "topology.tp to 2")),
        ("topology.first_stage_layers=0", ("topology.first_stage_layers", "at least 1")),
        ("topology.last_stage_layers=2", ("topology.last_stage_layers", "topology.pp to 2")),
        ("models.dtype=fp16", ("models.dtype", "fp64, fp32, bf16")),
        ("models.spec=flash", ("models.spec", "auto, local, te")),
        ("sft.start_from=scratch", ("sft.start_from", "base, latest")),
        ("reward.micro_batch_size=5", ("reward.global_batch_size", "found 32", "= 5")),
        ("topology.dp=3", ("sft.global_batch_size", "topology.dp = 48")),
        ("reward.beta2=1", ("reward.beta2",)),
        ("select.maximum.helpfulness=1", ("select.minimum.helpfulness", "found 2.8", "at most")),
        ("select.weights={}", ("select.weights",)),
        ("data.prompts=null", ("data.prompts", "text")),
        ("data.synthesis.kinds.open_q=3", ("data.synthesis.kinds.open_q", "nearest is open_qa")),
        ("data.synthesis.kinds.math=0.5", ("data.synthesis.kinds.math", "found 0.5", "whole number")),
        ("data.synthesis.kinds.math=2.5", ("data.synthesis.kinds.math", "found 2.5", "whole number")),
        ("data.synthesis.kinds.math=3", ("data.synthesis.brief", "no brief")),
        ("data.synthesis.brief=x.yaml", ("data.synthesis.kinds", "how many of which")),
        ("data.synthesis.per_ask=0", ("data.synthesis.per_ask", "at least 1")),
        ("judge.language=' '", ("judge.language", "a code such as en")),
        ("preference.judge=people", ("preference.judge", "reward, llm")),
        ("preference.start_from=scratch", ("preference.start_from", "sft, base, latest")),
        ("preference.objective=ipo", ("preference.objective", "dpo, rpo")),
        ("preference.beta=0", ("preference.beta", "above 0")),
        ("preference.eta=0", ("preference.eta", "above 0")),
        ("preference.sft_weight=-1", ("preference.sft_weight", "at least 0")),
        ("preference.iterations=0", ("preference.iterations", "at least 1")),
        ("judge.backend=hf", ("judge.backend", "local, endpoint")),
        ("judge.backend=endpoint", ("judge.endpoint.url", "no server is given")),
        ("judge.endpoint.url=http://me:secret@x/v1", ("judge.endpoint.url", "a name or password")),
        ("judge.endpoint.concurrency=0", ("judge.endpoint.concurrency", "at least 1")),
        ("judge.max_tokens=0", ("judge.max_tokens", "at least 1")),
        ("models.judge=http://x/v1", ("models.judge", "judge.backend=endpoint and judge.endpoint.url")),
        ("generate=3", ("generate is a group",)),
        ("run.name=${oc.env:HOME}", ("interpolation",)),
        ("run.name=???", ("interpolation",)),
        ("run.seed=[", ("cannot read", "run.seed")),
        ("verbose", ("found verbose", "expected key=value")),
    ],
)
def test_a_wrong_word_is_refused_in_one_sentence(word: str, parts: tuple[str, ...]):
    message = refusal(word)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_every_numeric_setting_has_a_rule():
    from nemo_sdg.config.checks import RULES

    free = ("select.minimum", "select.maximum", "select.weights", "select.minimum_scalar", "reward.outputs")
    free += ("evaluate.weights",)
    numeric = [
        key
        for key, value in config.flatten(RunConfig()).items()
        if key not in RULES and not key.startswith(free) and type(value) in (int, float)
    ]
    assert not numeric
    assert set(RULES) <= set(config.flatten(RunConfig()))


def test_a_yaml_file_may_be_a_part_and_names_itself_when_wrong(tmp_path: Path):
    part = tmp_path / "part.yaml"
    part.write_text("generate:\n  samples: 9\nselect.minimum:\n  coherence: 2\n")
    loaded = load(str(part))
    assert loaded.generate.samples == 9 and loaded.select.minimum == {"coherence": 2.0}
    assert loaded.score == RunConfig().score
    part.write_text("generate:\n  sample: 9\n")
    assert str(part) in refusal(recipe=str(part)) and "generate.samples" in refusal(recipe=str(part))
    for text, said in [
        ("a: 1\na: 2\n", "twice"),
        ("- 1\n", "mapping"),
        ("a: [", "cannot read"),
        ("a: " + "[" * 5_000, "cannot read"),
        ("!!python/name:os.system x: 1", "cannot read"),
    ]:
        part.write_text(text)
        assert said in refusal(recipe=str(part)), text


def test_yaml_goes_there_and_back(tmp_path: Path):
    before = load("tiny", ["select.minimum={}", "select.maximum.verbosity=2.5", "topology.dp=2"])
    file = tmp_path / "a.yaml"
    file.write_text(config.to_yaml(before))
    assert config.from_yaml(file) == before
    file.write_text(
        f"fingerprint: abc\nversions: {{}}\nconfig:\n{re.sub('^', '  ', config.to_yaml(before), flags=re.M)}"
    )
    assert load(str(file)) == before


def test_a_python_recipe_is_the_function_of_the_files_name(tmp_path: Path):
    recipe = tmp_path / "my-run.py"
    recipe.write_text("from nemo_sdg.config import RunConfig\ndef my_run():\n    return RunConfig()\n")
    assert load(str(recipe), ["generate.samples=2"]).generate.samples == 2
    for text, said in [
        ("def other(): pass\n", "no function"),
        ("def my_run():\n    return 3\n", "found int"),
        ("def my_run():\n    return 1 / 0\n", "ZeroDivisionError"),
        ("def my_run(:\n", "SyntaxError"),
    ]:
        recipe.write_text(text)
        assert said in refusal(recipe=str(recipe)), text


@pytest.mark.parametrize(
    "line, parts",
    [
        ("c.sft.learing_rate = 1.0", ("unknown key 'sft.learing_rate'", "nearest valid key is sft.learning_rate")),
        ("c.colour = 1", ("unknown key 'colour'",)),
        ("c.sft.steps = 'many'", ("sft.steps", "'many'", "a whole number")),
        ("c.sft = {'steps': 3}", ("sft is a group of settings", "found {'steps': 3}", "a Training")),
        ("c.reward = c.sft", ("reward is a group of settings", "a RewardTraining")),
        ("c.select.minimum = {'helpfulness': 'much'}", ("select.minimum", "'much'", "names with numbers")),
        ("c.sft.steps = c.sft.steps * 1.0", ("sft.steps", ".0", "a whole number")),
        ("c.run.rounds = True", ("run.rounds", "True", "a whole number")),
        ("c.sft.learning_rate = 10**400", ("sft.learning_rate", "a number")),
        ("import numpy; c.generate.stop = numpy.array(['a', 'b'])", ("generate.stop", "a list of texts")),
        ("c.run.name = '${x}'", ("run.name holds an interpolation",)),
        ("c.generate.stop = ['???']", ("generate.stop holds an interpolation",)),
    ],
)
def test_what_a_python_recipe_sets_is_held_to_the_same_rules(tmp_path: Path, line: str, parts: tuple[str, ...]):
    """Python itself takes any attribute: one that is misspelt would be a setting that nobody reads."""
    recipe = tmp_path / "mine.py"
    recipe.write_text(f"from nemo_sdg.config import load\ndef mine():\n    c = load('tiny')\n    {line}\n    return c\n")
    message = refusal(recipe=str(recipe))
    assert all(part in message for part in (str(recipe), *parts)) and "\n" not in message, message


def test_what_a_python_recipe_sets_has_the_type_of_its_setting(tmp_path: Path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from nemo_sdg.config import load\ndef mine():\n    c = load('tiny')\n    c.sft.learning_rate = 1\n"
        "    c.select.minimum = {'helpfulness': 2}\n    return c\n"
    )
    config = load(str(recipe))
    values = config.sft.learning_rate, config.select.minimum["helpfulness"]
    assert values == (1.0, 2.0) and {type(value) for value in values} == {float}
    assert override(config, []) == config and override(config, []) is not config


def test_the_fingerprint_follows_what_decides_rows_and_not_where_they_are_made():
    def name(*words: str) -> str:
        return config.fingerprint(config.identity(load("tiny", words)))

    assert name() == name(
        "topology.tp=2", "topology.pp=2", "topology.first_stage_layers=1", "run.timeout_s=9", "run.threads=1",
        "run.rounds=5", "score.pack_tokens=300",
    )  # fmt: skip
    others = [name(word) for word in ("run.seed=1", "models.dtype=fp64", "models.spec=local", "select.minimum={}")]
    assert len({name(), *others}) == 5
    assert config.fingerprint({"a": 1, "b": [2.5, None]}) == config.fingerprint({"b": [2.5, None], "a": 1})
    assert config.fingerprint("x") == "ba2df4903a2c14e8"  # sha256 of the three characters "x" with their quotes


def test_every_setting_is_read_by_code_outside_the_config_folder():
    source = "\n".join(f.read_text() for f in PACKAGE.rglob("*.py") if f.parent.name != "config")
    dead = [
        f"{group.name}.{setting.name}"
        for group in dataclasses.fields(RunConfig)
        for setting in dataclasses.fields(getattr(RunConfig(), group.name))
        if not re.search(rf"\.{setting.name}\b", source)
    ]
    assert not dead, f"no code reads {dead}"


def test_settings_load_without_torch():
    code = "import sys; from nemo_sdg.config import load; load('tiny'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


SERVED = ("generate.backend=endpoint", "generate.endpoint.url=http://127.0.0.1:1/v1")
JUDGED = ("score.backend=hf",)


def test_what_is_not_local_leaves_nothing_to_go_on_training_from():
    assert load("tiny", [*SERVED, *JUDGED, "reward.start_from=base"]).score.backend == "hf"
    assert "sft.start_from: there is no local model to go on from" in refusal(*SERVED, "sft.start_from=latest")
    assert "reward.start_from: there is no local model" in refusal(*JUDGED, "reward.start_from=latest")
    assert load("tiny", [*JUDGED, "reward.start_from=latest", "reward.enabled=false"])


def test_transformers_is_not_cut():
    assert "score.topology.tp: transformers holds the whole model" in refusal(
        *JUDGED, "reward.start_from=base", "score.topology.tp=2"
    )


def test_where_a_run_happens_is_not_what_it_is():
    same = ("models.placement=split", "generate.topology.tp=2", "score.topology.dp=3", "run.strict=true")
    assert config.identity(load("tiny", list(same))) == config.identity(load("tiny"))
    assert config.identity(load("tiny", ["generate.min_p=0.1"])) != config.identity(load("tiny"))


def test_there_is_one_judge():
    server = ("judge.backend=endpoint", "judge.endpoint.url=http://127.0.0.1:1/v1")
    assert load("tiny", list(server)).models.judge is None and load("tiny", ["models.judge=x"]).judge.backend == "local"
    assert "models.judge: there are two judges, found x and a server" in refusal(*server, "models.judge=x")
    assert "secret" not in refusal("models.judge=http://me:secret@x/v1")


TUNED = "preference.enabled=true"


def test_preference_tuning_has_a_start_and_pairs():
    assert load("tiny", [TUNED]).preference.start_from == "sft"
    assert load("tiny", [TUNED, "sft.enabled=false", "preference.start_from=base"])
    assert "there is no SFT to go on from, found sft with sft.enabled=false" in refusal(TUNED, "sft.enabled=false")
    assert "the result of SFT would not be used, found latest" in refusal(TUNED, "preference.start_from=latest")
    assert "preference.start_from: there is no local model to go on from" in refusal(
        *SERVED, TUNED, "sft.enabled=false", "preference.start_from=latest"
    )
    assert "preference.enabled: there is nothing to make pairs of" in refusal(TUNED, "generate.samples=1")
    for more in ("generate.others={x: 1}", "revise.passes=1", "data.preference={x: 1}"):
        assert load("tiny", [TUNED, "generate.samples=1", more])


def test_a_pair_fits_into_a_packed_row():
    words = (TUNED, "preference.max_length=100", "preference.packed_sequence_size")
    assert load("tiny", [*words[:2], f"{words[2]}=200"])
    assert "expected at least twice preference.max_length = 100" in refusal(*words[:2], f"{words[2]}=199")
    # What is not done asks nothing of the ranks.
    batches = ("preference.global_batch_size=12", "topology.dp=2", "preference.micro_batch_size=8")
    assert load("tiny", list(batches))
    assert "preference.global_batch_size: the global batch cannot be cut" in refusal(TUNED, *batches)


def test_files_with_weights():
    read = load("tiny", ["data.labelled={a/b.jsonl: 2, c.parquet: 0.5}"])
    assert read.data.labelled == {"a/b.jsonl": 2.0, "c.parquet": 0.5}
    assert "data.labelled: no row would be taken, found a.jsonl: 0" in refusal("data.labelled={a.jsonl: 0}")
    assert "data.preference: no row would be taken" in refusal("data.preference={a.jsonl: -1}")
    assert "data.validation_share: the value is not allowed" in refusal("data.validation_share=1")


def test_the_settings_that_decide_the_rows_as_yaml(tmp_path):
    words = ["data.labelled={a/b.jsonl: 2}", "generate.endpoint.url=http://127.0.0.1:1/v1", "run.seed=7"]
    words += ["generate.others={http://127.0.0.1:1/v1#m: 2, http://127.0.0.1:2/v1: 1}"]
    made = load("tiny", [*words, "topology.dp=1"])
    (tmp_path / "some.yaml").write_text(config.dataset_yaml(made, 1))
    read = load(str(tmp_path / "some.yaml"))
    assert config.dataset_settings(read, 1) == config.dataset_settings(made, 1) and read.data.labelled == {"a/b.jsonl": 2.0}
    assert read.generate.endpoint.url is None and "127.0.0.1" not in config.dataset_yaml(made, 1)
    assert list(read.generate.others.values()) == [2, 1] and "topology" not in config.dataset_yaml(made, 1)


def test_one_value_may_be_both_limits():
    """Above it, nothing could pass; at it, something can."""
    both = load("tiny", ["select.minimum.helpfulness=3", "select.maximum.helpfulness=3"]).select
    assert both.minimum == both.maximum == {"helpfulness": 3.0}


def test_outputs_of_the_reward_model_have_names():
    words = ["reward.outputs.clinical_safety=0", "select.minimum.clinical_safety=2", "reward.compare=clinical_safety"]
    own = load("tiny", words)
    assert own.reward.outputs == {**config.OUTPUTS, "clinical_safety": 0} and own.reward.own == ("clinical_safety",)
    assert load("tiny", ["reward.outputs={helpfulness: 4}"]).reward.outputs == {"helpfulness": 4}
    assert "a label of your own stands in reward.outputs" in refusal("select.minimum.clinical_safety=2")
    assert "the reward model has no such output" in refusal("reward.outputs.clinical_safety=9")
    assert "two names share an output" in refusal("reward.outputs.clinical_safety=4")
    assert "the name cannot be a label's" in refusal("reward.outputs={'Clinical safety': 0, helpfulness: 4}")
    assert "no output would be trained" in refusal("reward.outputs={}")
    assert "reward.compare: what is compared is no output" in refusal("reward.compare=clinical_safety")
    pairs = load("tiny", ["reward.objective=bradley_terry_scaled"]).reward
    assert (pairs.rows, pairs.trained) == ("preference", {"helpfulness": 4})
    assert (own.reward.rows, own.reward.trained) == ("reward", own.reward.outputs)


def test_the_names_of_outputs_decide_the_datasets_of_every_round():
    usual, own = load("tiny", []), load("tiny", ["reward.outputs.clinical_safety=0"])
    assert not any(key.startswith("reward.outputs") for key in config.dataset_settings(usual, 0))
    assert config.dataset_settings(own, 0)["reward.outputs.clinical_safety"] == 0


def test_validation_has_rows():
    load("tiny", ["reward.validate_every=10"])  # evaluate.helpsteer2
    load("tiny", ["sft.validate_every=10", "data.validation_share=0.1"])
    load("tiny", ["sft.validate_every=10", "sft.validation=held-out.jsonl"])
    load("tiny", ["sft.validate_every=10", "sft.enabled=false"])
    for words in (["sft.validate_every=10"], ["reward.validate_every=10", "evaluate.helpsteer2=null"],
                  ["reward.validate_every=10", "reward.objective=bradley_terry"]):  # fmt: skip
        assert "there is nothing to validate on" in refusal(*words), words


def test_a_reward_model_starts_from_a_policy_that_is_here():
    load("tiny", ["reward.start_from=policy"])
    load("tiny", [*SERVED, "reward.start_from=policy"])
    assert "there is no local policy to start from" in refusal(*SERVED, "reward.start_from=policy", "sft.enabled=false")
    assert "sft.start_from" in refusal("sft.start_from=policy")
