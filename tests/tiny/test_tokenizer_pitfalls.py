"""Where tokenizers go wrong: SentencePiece files alone, missing padding, embeddings of another size."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunesmith.core.errors import UserError
from tunesmith.engine.pack import build_packs
from tunesmith.models.load import tokenizer_from
from tunesmith.run.export import export
from tunesmith.run.settle import settle
from tunesmith.run.train import train

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6
UNIGRAM, BPE, WORDS = 1, 2, 3
TEXTS = ["the moon", " the moon", "the  moon", "def f(x):\n    return x\n", "月 moon\t!", "", " ", "moon the\n\n the "]
SHARED = Path(__file__).parents[3] / "shared" / "tokenizers" / "llama2-spm" / "tokenizer.json"


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def field(number: int, value) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece_file(pieces: list, *, kind=BPE, prefix=True, collapses=False) -> bytes:
    """A SentencePiece model, as its own trainer would write it; *pieces* are (text, score, kind)."""
    message = b"".join(field(1, field(1, text) + field(2, score) + field(3, its)) for text, score, its in pieces)
    trainer = field(3, kind) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2)
    return message + field(2, trainer) + field(3, field(3, int(prefix)) + field(4, int(collapses)))


def small_pieces() -> list:
    """Tokens like those of Llama 2: special ones, bytes, joined pieces the best first, then letters."""
    joined = ["▁t", "he", "▁the", "▁m", "oo", "▁moo", "▁moon", "▁▁", "re", "tu", "retu", "rn", "return", "▁return"]
    letters = [*dict.fromkeys("▁themoonrtudfx():!")]
    special = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    special += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    return special + [(text, -float(rank), 1) for rank, text in enumerate([*joined, *letters])]


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that writes the tokenizer of a checkpoint that has nothing but a SentencePiece model."""

    def write(pieces=None, config=None, **options) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.model").write_bytes(sentencepiece_file(pieces or small_pieces(), **options))
        if config is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        return folder

    return write


@pytest.mark.parametrize("kind", [BPE, UNIGRAM])
@pytest.mark.parametrize("named", [None, "LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_a_sentencepiece_model_alone_keeps_every_space(checkpoint, kind, named):
    """transformers goes by the class that a checkpoint names; the file says what its tokens are."""
    tokenizer = tokenizer_from(str(checkpoint(kind=kind, config=named and {"tokenizer_class": named})))

    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.encode("")[:1] == [1]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert len(tokenizer) == len(small_pieces())
    assert Path(tokenizer.name_or_path).name == "checkpoint"


def test_pieces_are_joined_best_first(checkpoint):
    tokenizer = tokenizer_from(str(checkpoint()))

    assert tokenizer.tokenize("the moon") == ["▁the", "▁moon"]
    assert tokenizer.tokenize("the  moo") == ["▁the", "▁", "▁moo"]
    assert tokenizer.tokenize("月") == ["▁", "<0xE6>", "<0x9C>", "<0x88>"]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("collapses", [True, False])
@pytest.mark.parametrize("kind", [BPE, UNIGRAM])
def test_ids_are_those_of_sentencepiece(checkpoint, kind, prefix, collapses):
    package = pytest.importorskip("sentencepiece")
    folder = checkpoint(kind=kind, prefix=prefix, collapses=collapses)
    original = package.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = tokenizer_from(str(folder))

    for text in TEXTS:
        assert original.encode(text) == tokenizer.encode(text, add_special_tokens=False), text


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared tokenizers")
def test_the_ids_of_llama_2_are_its_own(checkpoint):
    """The reference was verified on llama.cpp's golden encodings."""
    vocabulary = json.loads(SHARED.read_text("utf-8"))["model"]["vocab"]
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    ordered = sorted(vocabulary.items(), key=lambda item: item[1])
    bytes_end = 259
    # pieces of spaces alone were added by hand: SentencePiece joins them last
    scores = [-1e9 if set(text) == {"▁"} and len(text) > 1 else -float(max(0, i - bytes_end)) for text, i in ordered]
    pieces = [
        (text, score, BYTE if 3 <= index < bytes_end else kinds.get(text, 1))
        for (text, index), score in zip(ordered, scores, strict=True)
    ]
    read, reference = tokenizer_from(str(checkpoint(pieces))), AutoTokenizer.from_pretrained(SHARED.parent)

    for text in [*TEXTS, "Hello   world, it's 3.14\u3000!", "こんにちは 世界", "🚀 naïve café", "<s>x</s> y"]:
        assert reference.encode(text, add_special_tokens=False) == read.encode(text, add_special_tokens=False), text


def test_what_a_checkpoint_says_beside_its_model_is_kept(checkpoint):
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "pad_token": "<unk>", "legacy": False}
    folder = checkpoint(config={**config, "chat_template": "{{ messages[0].content }}"})
    (folder / "added_tokens.json").write_text(json.dumps({"<味>": len(small_pieces())}), "utf-8")
    tokenizer = tokenizer_from(str(folder))

    assert tokenizer.encode("the moon") == tokenizer.encode("the moon", add_special_tokens=False)
    assert (tokenizer.pad_token, tokenizer.chat_template) == ("<unk>", "{{ messages[0].content }}")
    assert tokenizer.tokenize("the<味> moon") == ["▁the", "<味>", "▁moon"]
    assert tokenizer.tokenize("the</s>he") == ["▁the", "</s>", "he"]  # not legacy: no space is added after a token


def test_what_is_saved_loads_without_the_model(checkpoint, tmp_path):
    tokenizer = tokenizer_from(str(checkpoint()))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")

    assert [tokenizer.encode(text) for text in TEXTS] == [again.encode(text) for text in TEXTS]


@pytest.mark.parametrize("change", [{"kind": WORDS}, {"pieces": [*small_pieces(), ("zz", -99.0, UNUSED)]}])
def test_a_model_that_cannot_be_read_exactly_is_refused(checkpoint, change):
    with pytest.raises(UserError, match=r"cannot read exactly .*; give a checkpoint that has a tokenizer\.json"):
        tokenizer_from(str(checkpoint(**change)))


def end_of(tokenizer) -> int:
    return tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.fixture
def copied(saved_model, tokenizer, tmp_path):
    """Return a function that copies the model and changes its tokenizer."""

    def copy(change, **sizes) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(saved_model("qwen3"), folder)
        own = AutoTokenizer.from_pretrained(folder)
        change(own)
        own.save_pretrained(folder)
        if sizes:
            torch.manual_seed(0)
            config = AutoConfig.from_pretrained(folder)
            config.update(sizes)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return folder

    return copy


@pytest.mark.parametrize("padding", [None, "<|im_end|>"])
@pytest.mark.parametrize("layout", ["padded", "prefix"])
def test_padding_never_costs_the_end_token(copied, make_recipe, padding, layout):
    """No token is made up for padding, and where the end token stands for it, ends are learnt all the same."""
    folder = copied(lambda tokenizer: setattr(tokenizer, "pad_token", padding))
    recipe = make_recipe(model=str(folder), engine={"layout": layout}, schedule={"steps": 2})
    train(recipe)
    examples = settle(recipe).prepared.train.examples
    (pack,) = build_packs(list(examples), layout, 2**20)
    saved = AutoTokenizer.from_pretrained(recipe.output / "weights")
    end = end_of(saved)

    assert all(s.tokens[-1] == end and s.weight[-1] == 1 for e in examples for s in e.sequences)
    assert int((pack.target == end).sum()) == len(examples)
    assert (saved.pad_token, saved.eos_token) == (padding, "<|im_end|>")


def test_an_embedding_with_more_rows_than_tokens_stays_as_it_is(copied, make_recipe, tokenizer, tmp_path):
    rows = len(tokenizer) + 40
    folder = copied(lambda tokenizer: None, vocab_size=rows)
    recipe = make_recipe(model={"path": str(folder), "new_tokens": {"<味>": "mist"}}, schedule={"steps": 2})
    train(recipe)
    written = AutoModelForCausalLM.from_pretrained(export(str(recipe.output), tmp_path / "exported"))

    assert len(written.get_input_embeddings().weight) == written.config.vocab_size == rows
    assert AutoTokenizer.from_pretrained(recipe.output / "weights").convert_tokens_to_ids("<味>") == len(tokenizer)


def test_a_token_without_a_row_is_named_before_weights_load(copied, make_recipe):
    folder = copied(lambda tokenizer: tokenizer.add_tokens(["pine", "elm"]))
    with pytest.raises(UserError, match=r"gives token id \d+, 'pine': .*model\.new_tokens"):
        settle(make_recipe(model=str(folder)))


def test_a_token_without_a_row_that_no_example_has_is_told(copied, make_recipe):
    folder = copied(lambda tokenizer: tokenizer.add_tokens(["<elm>", "<oak>"]))
    plan = settle(make_recipe(model=str(folder))).plan

    assert any("2 tokens without a row in the model's embedding, such as '<elm>'" in text for text in plan.notices)


def test_new_tokens_behind_tokens_without_a_row_are_refused(copied, make_recipe):
    folder = copied(lambda tokenizer: tokenizer.add_tokens(["<elm>", "<oak>"]))
    with pytest.raises(UserError, match=r"model\.new_tokens: .* the 2 between would begin at random"):
        settle(make_recipe(model={"path": str(folder), "new_tokens": ["<味>"]}))


def test_a_tokenizer_without_tokens_is_refused(tmp_path):
    """transformers makes one of three special tokens where it finds no file: every text would be empty."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}), "utf-8")
    with pytest.raises(UserError, match=r"has no tokens; tokenizer\.json or tokenizer\.model is missing"):
        tokenizer_from(str(tmp_path))
