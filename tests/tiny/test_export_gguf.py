"""GGUF files: what another program reads in them is the model, to the last token and beyond rounding nothing."""

import json

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tunesmith.core.errors import UserError
from tunesmith.models.new_tokenizer import SPECIAL, make_tokenizer
from tunesmith.models.schema import NewTokenizer
from tunesmith.run.evaluate import load_contestant
from tunesmith.run.gguf_file import GgufFile, write_gguf
from tunesmith.run.gguf_model import find_shape
from tunesmith.run.gguf_tokens import _QWEN2, TRIALS, describe_tokens
from tunesmith.run.probes import PROBES
from tunesmith.run.verify import GgufForm, Reference

_WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES = {**_WIDTH, "num_key_value_heads": 2, "max_position_embeddings": 256}
_GEMMA = {**_SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

# name -> model type, sizes, tokenizer
MODELS = {
    "llama": ("llama", {**_SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "characters"),
    "mistral": ("mistral", {**_SIZES, "head_dim": 16, "sliding_window": None}, "characters without a space"),
    "llama-scaled": (
        "llama",
        {**_SIZES, "rope_parameters": {**_LLAMA3, "original_max_position_embeddings": 64}},
        "bytes",
    ),
    "llama-biased": ("llama", {**_SIZES, "attention_bias": True, "tie_word_embeddings": True}, "bytes"),
    "qwen2": ("qwen2", _SIZES, "qwen"),
    "qwen3": ("qwen3", {**_SIZES, "head_dim": 16, "tie_word_embeddings": True}, "qwen"),
    "gemma2": ("gemma2", {**_GEMMA, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}, "pieces"),
    "gemma3": ("gemma3_text", {**_GEMMA, "num_hidden_layers": 6}, "pieces"),
}
TEXTS = [*PROBES, *TRIALS]


def pieces() -> PreTrainedTokenizerFast:
    """A tokenizer as Gemma's files have it: characters joined by rank, spaces written, bytes for the rest."""
    words = ["▁t", "he", "▁the", "on", "ce", "once", "春风", "江南", "▁a", "in", "ti", "▁ti", "me", "▁time", "▁▁"]
    letters = sorted(set("".join(TEXTS[:9])) - {" "} | {"▁"})
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), *letters, *words]
    ids = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [(w[:i], w[i:]) for w in words for i in range(1, len(w)) if w[:i] in ids and w[i:] in ids]
    inner = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(t, normalized=False) for t in ("<pad>", "<eos>", "<bos>", *SPECIAL)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<pad>")


def make(kind: str):
    """A tokenizer of one kind, with ChatML as its template."""
    if kind != "pieces":
        wanted = NewTokenizer(kind="characters" if "characters" in kind else "bpe", vocabulary_size=400)
        found = make_tokenizer(wanted, [text.replace(" ", "") if "without" in kind else text for text in TEXTS])
        if kind == "qwen":
            cut = pre_tokenizers.Split(Regex(_QWEN2), "isolated")
            found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )
        return found
    found = pieces()
    found.chat_template = make_tokenizer(NewTokenizer(vocabulary_size=300), ["a"]).chat_template
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a random model by its name in ``MODELS``."""

    def save(name: str):
        kind, sizes, tokens = MODELS[name]
        folder = tmp_path_factory.mktemp(name)
        tokenizer = make(tokens)
        torch.manual_seed(3)
        special = {"vocab_size": len(tokenizer) + 5, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **special, pad_token_id=tokenizer.pad_token_id, **sizes)
        )
        # every weight its own, norms and biases too: a wrong place, or a norm that is off by one, shows
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("name", MODELS)
def test_another_reader_finds_the_same_model(name, saved, tmp_path):
    """transformers' own table of GGUF names, and its reading of the sizes, are what this is held against."""
    tuned = load_contestant(str(saved(name)), "cpu")
    write_gguf(tmp_path / "model.gguf", tuned, name, "f32")
    found = GgufFile(tmp_path / "model.gguf")
    parity = GgufForm(found).compare(name, Reference.ask("run", tuned))

    assert (len(PROBES), 32 * len(PROBES)) == (parity.prompts, parity.same)
    assert parity.largest_difference < 1e-4
    assert tuned.template.stop_ids == found.stop_ids
    found.check_tokens(tuned.template.tokenizer)
    assert (parity.kind, parity.why) == ("exact", "")


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("mistral", {"sliding_window": 64}, "reads all positions for this type, and the model has a sliding_window"),
        ("qwen3", {"attention_bias": True}, "has no attention_bias for it"),
        ("llama", {"hidden_act": "gelu"}, "computes silu in its layers, and the model gelu"),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "not yarn"),
        ("gemma2", {**_GEMMA, "query_pre_attn_scalar": 24}, "scales queries by 8, and the model by 24"),
        ("gemma3_text", {**_GEMMA, "layer_types": ["full_attention"] * 2}, "has full attention in every 6th layer"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(kind, changes, why):
    """Such a file would load there, and answer as another model."""
    with pytest.raises(UserError, match=why):
        find_shape(AutoConfig.for_model(kind, **{**_SIZES, **changes}))


def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused():
    unknown, missing = make("bytes"), pieces()
    unknown.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[ab]+"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    with pytest.raises(UserError, match=r"no name that is known here for how this tokenizer cuts texts: \[ab\]\+"):
        describe_tokens(unknown, 500)
    values = json.loads(missing.backend_tokenizer.to_str())
    values["model"]["merges"] = [pair for pair in values["model"]["merges"] if "".join(pair) != "once"]
    with pytest.raises(UserError, match=r"llama\.cpp would join 'once', which this tokenizer does not"):
        describe_tokens(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(values))), 500)


@pytest.mark.gguf
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_finds_the_same_model(name, saved, tmp_path):
    """The program that the files are for: the same tokens of every text, the same log-probabilities."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python builds it, in about 17 minutes")
    tuned = load_contestant(str(saved(name)), "cpu")
    write_gguf(tmp_path / "model.gguf", tuned, name, "f32")
    reference, tokenizer = Reference.ask("run", tuned), tuned.template.tokenizer
    there = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=256, logits_all=True, type_k=0, type_v=0, verbose=False)
    same, apart = 0, []
    for text in TEXTS:
        found = there.tokenize(text.encode(), add_bos=False, special=True)

        assert tokenizer.encode(text, add_special_tokens=False) == found
    said = zip(reference.prompts, reference.written, reference.likeliest, reference.log_probabilities, strict=True)
    for prompt, written, likeliest, log_probabilities in said:
        there.reset()
        there.eval([*prompt, *written])
        logits = torch.tensor(there.scores[len(prompt) - 1 : len(prompt) + len(written) - 1])
        same += int((logits.argmax(-1) == torch.tensor(likeliest)).sum())
        found = logits.log_softmax(-1).gather(1, torch.tensor(written)[:, None])[:, 0]
        apart += (found - torch.tensor(log_probabilities)).abs().tolist()

    assert same >= 0.98 * len(apart)
    assert max(apart) < 1e-3, sum(apart) / len(apart)
