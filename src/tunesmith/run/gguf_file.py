"""Write a model as one GGUF file, and read it back as another program does."""

from __future__ import annotations

from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.errors import UserError
from tunesmith.run.gguf_model import find_shape, plain_frequencies, read_config, sizes_in, tensors, write_sizes
from tunesmith.run.gguf_tokens import TRIALS, Tokens, describe_tokens, write_tokens
from tunesmith.run.probes import PROBES, probe_dialogues

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.run.evaluate import Contestant
    from tunesmith.templates.chat import ChatTemplate

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
GGUF_TYPES: tuple[GgufType, ...] = ("f32", "f16", "bf16", "q8_0")
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def check_gguf(config: Any, tokenizer: Any) -> None:
    """Raise :class:`UserError` where a model cannot be written as GGUF, before anything is computed."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("--to: writing GGUF needs a package; pip install 'tunesmith[gguf]'") from None
    find_shape(config)
    describe_tokens(tokenizer, config.vocab_size)


def write_gguf(path: Path, tuned: Contestant, name: str, kind: GgufType) -> None:
    """Write the model, its tokenizer, template and stop tokens to *path*; matrices are of *kind*, the rest float32.

    Raises :class:`UserError` for a model that the format, or float16, cannot hold.
    """
    import gguf

    model, tokenizer = tuned.model, tuned.template.tokenizer
    shape = find_shape(model.config)
    found = describe_tokens(tokenizer, model.config.vocab_size)
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_sizes(writer, model.config, shape)
    write_tokens(writer, found, tokenizer, tuned.template.stop_ids)
    for name_there, value in tensors(model, shape):
        wanted = gguf.GGMLQuantizationType[kind.upper() if value.ndim > 1 else "F32"]
        if kind == "q8_0" and value.shape[-1] % 32:
            wanted = gguf.GGMLQuantizationType["F16" if value.ndim > 1 else "F32"]  # as llama.cpp does: blocks of 32
        if wanted == gguf.GGMLQuantizationType.F16 and float(abs(value).max()) > 65504:
            raise UserError(f"--quantization: {name_there} holds numbers beyond what f16 reaches; use bf16 or f32")
        writer.add_tensor(name_there, gguf.quants.quantize(value, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file as transformers reads it: its weights by transformers' own table, run by transformers' code.

    Texts are split by transformers' reading where bytes are joined, and as llama.cpp does where scores join.
    """

    path: Path

    @cached_property
    def fields(self) -> dict[str, Any]:
        """All that stands before the weights, and the name of each weight with its type.

        Raises :class:`UserError` for a file that is none.
        """
        import gguf

        try:
            reader = gguf.GGUFReader(self.path)
        except (ValueError, IndexError) as error:
            raise UserError(f"{self.path} is not a GGUF file that can be read: {error}") from None
        found = {name: field.contents() for name, field in reader.fields.items()}
        return found | {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}

    @property
    def kind(self) -> str:
        """How exactly the matrices are kept: ``exact``, ``rounded`` or ``quantized``."""
        types = {value for name, value in self.fields.items() if name.endswith(".weight")}
        return "exact" if types <= {"F32"} else "rounded" if types <= {"F32", "F16", "BF16"} else "quantized"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a turn."""
        names = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
        return tuple(self.fields[name] for name in names if name in self.fields)

    @cached_property
    def model(self) -> Any:
        """The model in float32; :class:`UserError` where transformers reads other sizes, or other weights."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        config = read_config(self.fields)
        told = load_gguf_checkpoint(str(self.path))["config"]
        for name, own in sizes_in(config).items():
            if name in told and abs(own - told[name]) > 1e-6 * max(1.0, abs(own)):
                raise UserError(f"{self.path}: transformers reads {name} = {told[name]}, and it should be {own}")
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with redirect_stderr(StringIO()):  # the reader draws a bar of its own
            read = load_gguf_checkpoint(str(self.path), return_tensors=True, model_to_load=model)["tensors"]
        missing, _ = model.load_state_dict(read, strict=False)
        if lost := [name for name in missing if not (config.tie_word_embeddings and name == "lm_head.weight")]:
            raise UserError(f"{self.path} has no weight for {lost[0]}")
        model.tie_weights()
        factors = next((t.data for t in self._tensors() if t.name == "rope_freqs.weight"), None)
        if factors is not None:
            model.model.rotary_emb.inv_freq = plain_frequencies(config) / torch.tensor(factors)
        return model.eval()

    def _tensors(self) -> Any:
        import gguf

        return gguf.GGUFReader(self.path).tensors

    def encode(self, text: str) -> list[int]:
        """Return the tokens of *text*, in which control tokens are such, with none put before them."""
        if self.fields["tokenizer.ggml.model"] == "llama":
            return self._scored.encode(text)
        return list(self._byte_level.encode(text, add_special_tokens=False))

    @cached_property
    def _scored(self) -> Tokens:
        get = self.fields.get
        return Tokens(
            "llama",
            str(get("tokenizer.ggml.pre")),
            tuple(self.fields["tokenizer.ggml.tokens"]),
            tuple(self.fields["tokenizer.ggml.token_type"]),
            scores=tuple(self.fields["tokenizer.ggml.scores"]),
            space_first=bool(get("tokenizer.ggml.add_space_prefix", True)),
        )

    @cached_property
    def _byte_level(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.path.parent), gguf_file=self.path.name)

    def prompts(self, reference: ChatTemplate) -> list[list[int]]:
        """Return the tokens of the probes: this file's template and tokens, rendered by *reference*'s code."""
        template, tokenizer = self.fields.get("tokenizer.chat_template"), reference.tokenizer
        if template is None:
            return [self.encode(text) for text in PROBES]
        messages = [[message.as_template_input() for message in each.messages] for each in probe_dialogues()]
        render: Any = tokenizer
        texts = [
            render.apply_chat_template(each, chat_template=template, add_generation_prompt=True, tokenize=False)
            for each in messages
        ]
        return [self.encode(text) for text in texts]

    def check_tokens(self, tokenizer: Any) -> None:
        """Raise :class:`UserError` where the file splits a text otherwise than *tokenizer* does."""
        for text in TRIALS:
            expected, found = tokenizer.encode(text, add_special_tokens=False), self.encode(text)
            if expected != found:
                raise UserError(
                    f"--to: GGUF cannot hold this tokenizer: {text!r} would become {found[:12]} and not {expected[:12]}"
                )
