"""The exported tokenizer and chat template give our ids, for every kind of SentencePiece model that they accept."""

from __future__ import annotations

import json
from fractions import Fraction
from types import SimpleNamespace

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError

from nemo_sdg.checkpoints.hf.pieces import NORMAL, UNIGRAM, _message_class, read_pieces
from nemo_sdg.checkpoints.hf.tokenizer import fast_tokenizer, write_tokenizer
from nemo_sdg.errors import CheckpointError, RowError
from nemo_sdg.models.templates import instruct_prompt, reward_prompt, sft_text
from nemo_sdg.models.tokenizer import Tokenizer
from nemo_sdg.resources import resolve

transformers = pytest.importorskip("transformers")

CORPUS = """A chat between a curious user and an assistant. The assistant gives helpful, detailed answers.
def add(a, b):    return a + b  # spaces   and more
Grüße aus Zürich, 3.14 and 1,000 (or <b>bold</b> text); the quick brown fox jumps over the lazy dog.
日本語 and 한국어 and русский; "quoted" text, it's 100% e-mail me@example.com / what? yes! <s> </s> a=b&c {x} [y]
<pad> <unk> System User Assistant \u00e9 e\u0301 \ufb01 the the the theatre there their them then
"""
KINDS = {
    "bpe": dict(model_type="bpe", vocab_size=420),
    "bpe without bytes": dict(model_type="bpe", vocab_size=160, byte_fallback=False),
    "bpe with a dummy prefix": dict(model_type="bpe", vocab_size=420, add_dummy_prefix=True),
    "bpe normalised": dict(
        model_type="bpe", vocab_size=420, add_dummy_prefix=True, remove_extra_whitespaces=True,
        normalization_rule_name="nmt_nfkc",
    ),
    "unigram": dict(model_type="unigram", vocab_size=400),
    "unigram without bytes": dict(model_type="unigram", vocab_size=150, byte_fallback=False),
    "unigram with a dummy prefix": dict(model_type="unigram", vocab_size=400, add_dummy_prefix=True),
    "char": dict(model_type="char", vocab_size=420),
    "char with a dummy prefix": dict(model_type="char", vocab_size=420, add_dummy_prefix=True),
}  # fmt: skip
PIECES = [
    "Hello", " the", "theatre", "\n", "\n\n", "  ", " ", "\t", "   ", "日本", "é", "e\u0301", "ﬁ", "👩‍👩‍👧", "<s>", "</s>", "<unk>",
    "<pad>", "<0x41>", "<extra_id_", "<extra_id_x>", ">", "<", "/s>", "1,000.50", "▁", "aaaaaa", "Assistant", "User\n", "\u00a0", "\u3000",
]  # fmt: skip
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
)
MANY = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def train(path, **changes):
    """The bytes of a SentencePiece model with Nemotron's markers."""
    text = path / "corpus.txt"
    text.write_text(CORPUS * 3)
    arguments = dict(
        pad_id=0, unk_id=1, bos_id=2, eos_id=3, user_defined_symbols=[f"<extra_id_{i}>" for i in range(4)],
        byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, hard_vocab_limit=False,
        normalization_rule_name="identity", minloglevel=2, character_coverage=1.0,
    )  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(path / "t"), **arguments | changes
    )  # fmt: skip
    return (path / "t.model").read_bytes()


def exported(folder, model, reward=False):
    folder.mkdir()
    write_tokenizer(folder, model, reward=reward, seq_length=256)
    (folder / "config.json").write_text('{"model_type": "nemotron"}')
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """Our tokenizer and what AutoTokenizer makes of the export, for each kind."""
    root = tmp_path_factory.mktemp("kind")
    model = train(root, **KINDS[request.param])
    theirs, scorer = exported(root / "hf", model), exported(root / "hf-reward", model, reward=True)
    return SimpleNamespace(ours=Tokenizer(model), pieces=read_pieces(model), theirs=theirs, scorer=scorer)


def agree(pair, found, text):
    """The ids are ours; or, in a unigram model, another way to cut the text that scores the same in exact numbers."""
    expected = pair.ours.encode(text)
    if pair.pieces.kind == UNIGRAM and found != expected:
        scores = [sum(Fraction(pair.pieces.scores[i]) for i in ids) for ids in (found, expected)]
        return scores[0] == scores[1] and pair.ours.decode(found) == pair.ours.decode(expected)
    return found == expected


@MANY
@given(text=TEXT)
def test_any_text_gives_our_ids(pair, text):
    assert agree(pair, pair.theirs(text)["input_ids"], text)


@MANY
@given(
    contents=st.lists(TEXT.filter(str.strip), min_size=1, max_size=5), system=st.one_of(st.none(), TEXT)
)  # fmt: skip
def test_dialogues_give_our_ids_and_go_on_from_where_they_stood(pair, contents, system):
    theirs, scorer = pair.theirs, pair.scorer
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    closed = theirs.apply_chat_template(messages)
    if len(contents) % 2:
        prompt = instruct_prompt(messages)
        assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt
        assert agree(pair, theirs.apply_chat_template(messages, add_generation_prompt=True), prompt)
        further = messages + [{"role": "assistant", "content": "yes"}]
    else:
        assert theirs.apply_chat_template(messages, tokenize=False) == sft_text(messages)[0]
        assert agree(pair, closed, sft_text(messages)[0])
        assert scorer.apply_chat_template(messages, tokenize=False) == reward_prompt(messages)
        assert agree(pair, scorer.apply_chat_template(messages), reward_prompt(messages))
        further = messages + [{"role": "user", "content": "and?"}]
        # What a generation begins with holds the dialogue so far, to the token.
        assert theirs.apply_chat_template(further, add_generation_prompt=True)[: len(closed)] == closed
    assert theirs.apply_chat_template(further)[: len(closed)] == closed


SAY = {"u": {"role": "user", "content": "hi"}, "a": {"role": "assistant", "content": "yes"},
       "s": {"role": "system", "content": "be brief"}, "e": {"role": "user", "content": " \n"},
       "n": {"role": "user", "content": None}, "m": {"role": "user", "content": "x<extra_id_7>y"},
       "S": {"role": "system", "content": "x<extra_id_1>"}, "0": {"role": "system", "content": ""},
       "t": {"role": "tool", "content": "4"}, "o": {"role": "user", "content": "<extra_id_>1> <extra_id_a> <extra_id_1"},
       "p": {"role": "user", "content": ["parts"]}}  # fmt: skip


@pytest.mark.parametrize(
    "turns", ["u", "ua", "su", "sua", "0u", "o", "s", "a", "au", "uu", "usa", "uas", "e", "n", "p", "m", "Su", "t", "uat", "Sua", "0ua", "oa"]
)  # fmt: skip
def test_the_templates_refuse_what_ours_refuse(tmp_path, turns):
    model = resolve("package:examples/tiny/tokenizer.model").read_bytes()
    theirs, scorer = exported(tmp_path / "hf", model), exported(tmp_path / "reward", model, reward=True)
    messages = [SAY[turn] for turn in turns]

    def told(ours, tokenizer, **arguments):
        try:
            expected = ours(messages)
        except RowError:
            with pytest.raises(TemplateError):
                tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
            return False
        assert tokenizer.apply_chat_template(messages, tokenize=False, **arguments) == expected
        return True

    good = [
        told(instruct_prompt, theirs, add_generation_prompt=True),
        told(reward_prompt, scorer),
        told(reward_prompt, scorer, add_generation_prompt=True),
    ]
    assert any(good) == (turns in ("u", "ua", "su", "sua", "0u", "o", "0ua", "oa"))


@pytest.mark.parametrize(
    ("turn", "message"), [("n", "turn 0 has no text"), ("p", "turn 0 has no text"), ("m", "turn 0 holds a marker")]
)
def test_a_refusal_says_why(tmp_path, turn, message):
    theirs = exported(tmp_path / "hf", resolve("package:examples/tiny/tokenizer.model").read_bytes())
    with pytest.raises(TemplateError, match=message):
        theirs.apply_chat_template([SAY[turn]], add_generation_prompt=True)


def test_tools_are_refused(tmp_path):
    model = resolve("package:examples/tiny/tokenizer.model").read_bytes()
    with pytest.raises(TemplateError, match="no tools"):
        exported(tmp_path / "hf", model).apply_chat_template([SAY["u"]], tools=[{"type": "function", "function": {}}])


def test_special_tokens_and_decoding(pair):
    ours, theirs = pair.ours, pair.theirs
    assert theirs.eos_token_id == theirs.pad_token_id == ours.turn_id
    assert theirs.bos_token is None and not theirs.clean_up_tokenization_spaces
    text = "hello , don 't worry ."
    assert theirs.decode([*ours.encode(text), ours.turn_id, ours.turn_id], skip_special_tokens=True) == text
    marked = "<extra_id_1>User the <extra_id_2>"
    assert theirs.decode(ours.encode(marked)) == ours.decode(ours.encode(marked)) == marked
    batch = theirs(["hello", "hello the theatre"], padding=True)
    assert batch["input_ids"][0][0] == ours.turn_id and batch["attention_mask"][0][0] == 0


def test_the_tokenizer_json_alone_gives_the_same(tmp_path):
    """For those who read it without transformers."""
    model = train(tmp_path, **KINDS["bpe"])
    exported(tmp_path / "hf", model)
    alone, ours = tokenizers.Tokenizer.from_file(str(tmp_path / "hf/tokenizer.json")), Tokenizer(model)
    prompt = instruct_prompt([SAY["u"]])
    assert alone.encode(prompt).ids == ours.encode(prompt)
    assert alone.decode(ours.encode("the theatre<extra_id_1>")) == "the theatre"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_control_pieces_are_letters_even_where_pieces_lead_to_them(tmp_path, kind):
    """With `<s` and `>` the library would make `<s>` in BPE; in a unigram model no cut keeps it apart."""
    data = _message_class().FromString(train(tmp_path, **KINDS[kind]))
    longer = [piece for piece in data.pieces if piece.type == NORMAL and len(piece.piece) > 1]
    for piece, text in zip(longer, ("<s", "s>")):
        piece.piece = text
    model = data.SerializeToString()
    ours, fast = Tokenizer(model), fast_tokenizer(read_pieces(model))
    assert len(ours.encode("<s")) == len(ours.encode("s>")) == 1
    for text in ("<s>", "a<s>b", "<s><s> <s", "</s>", "<pad>"):
        assert fast.encode(text).ids == ours.encode(text)


def test_a_difference_is_an_error_that_names_the_text(tmp_path, monkeypatch):
    from nemo_sdg.checkpoints.hf import tokenizer as module

    def without_a_merge(pieces):
        merges = merges_of(pieces)
        return merges[:3] + merges[4:]

    merges_of = module._merges
    monkeypatch.setattr(module, "_merges", without_a_merge)
    with pytest.raises(CheckpointError, match="would not give the ids of the SentencePiece model.* for '"):
        write_tokenizer(tmp_path, train(tmp_path, **KINDS["bpe"]), reward=False, seq_length=256)
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("changes", [dict(model_type="word"), dict(treat_whitespace_as_suffix=True)])
def test_models_that_cannot_be_expressed_are_refused(tmp_path, changes):
    model = train(tmp_path, **KINDS["bpe"] | dict(vocab_size=350) | changes)
    with pytest.raises(CheckpointError, match="cannot express"):
        fast_tokenizer(read_pieces(model))


def test_both_files_hold_the_template_and_the_model_is_carried_along(tmp_path):
    model = resolve("package:examples/tiny/tokenizer.model").read_bytes()
    exported(tmp_path / "hf", model)
    config = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert config["chat_template"] == (tmp_path / "hf/chat_template.jinja").read_text()
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and config["model_max_length"] == 256
    assert (tmp_path / "hf/tokenizer.model").read_bytes() == model
