"""The engine that serves: replies of many requests in one batch are what each would be alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunesmith.core.errors import UserError
from tunesmith.generation import adapter_rows
from tunesmith.generation.batch import BatchLimits
from tunesmith.generation.requests import (
    ContextTooLongError,
    EngineClosedError,
    Handle,
    QueueFullError,
    ReplyFailedError,
    Request,
    UnknownAdapterError,
)
from tunesmith.generation.serving import BatchedEngine
from tunesmith.generation.settings import Generation

PROMPTS = [tuple((7 * row + 3 * place) % 90 + 2 for place in range(3 + 11 * row % 29)) for row in range(12)]
GREEDY = Generation(max_new_tokens=12)
LONG = Generation(max_new_tokens=200)


@pytest.fixture(scope="module")
def load(saved_model):
    def load(name: str = "qwen3"):
        path = saved_model(name)
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        model.generation_config = GenerationConfig()  # no end token that nobody asked for
        return model, AutoTokenizer.from_pretrained(path)

    return load


@pytest.fixture
def start(load):
    """Return a function that starts an engine, which is closed in the end."""
    engines = []

    def start(name: str = "qwen3", **options) -> BatchedEngine:
        engines.append(BatchedEngine(*load(name), **options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close(drain=False)


@pytest.fixture(scope="module")
def adapters(load, tmp_path_factory) -> list[Path]:
    """Folders of LoRA adapters of different ranks and targets, large enough to change answers."""
    folders = []
    for number, (rank, targets, options) in enumerate(
        [
            (4, ["q_proj", "v_proj"], {}),
            (8, "all-linear", {"use_rslora": True}),
            (2, ["down_proj", "k_proj"], {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"k_proj": 5}}),
        ]
    ):
        model, _ = load()
        torch.manual_seed(number)
        config = LoraConfig(r=rank, lora_alpha=16, target_modules=targets, init_lora_weights=False, **options)
        wrapped = get_peft_model(model, config)
        folders.append(tmp_path_factory.mktemp("adapters") / f"adapter{number}")
        wrapped.save_pretrained(folders[-1])
    return folders


def greedy(model, prompt: tuple[int, ...], count: int, stop: int | None = None) -> list[int]:
    """Return what transformers writes after *prompt* alone."""
    tokens = torch.tensor([prompt])
    config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=stop, pad_token_id=0)
    with torch.no_grad():
        written = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=config)
    found = written[0, len(prompt) :].tolist()
    return found[: found.index(stop)] if stop in found else found


def ask(engine: BatchedEngine, prompts=PROMPTS, settings=GREEDY, **options) -> list[list[int]]:
    handles = [engine.submit(Request(prompt, settings, **options)) for prompt in prompts]
    return [list(handle.reply(timeout=60).tokens) for handle in handles]


# --- the same as alone


@pytest.mark.parametrize("name", ["qwen3", "gemma2-windowed", "mistral-windowed", "mixtral-experts", "mpt-alibi"])
def test_requests_that_share_a_batch_get_what_each_gets_alone(start, load, name):
    engine, (model, _) = start(name, limits=BatchLimits(rows=5)), load(name)

    assert [greedy(model, prompt, 12, 5) for prompt in PROMPTS] == ask(engine, stop_ids=(5,))
    assert engine.stats().continuous


@pytest.mark.parametrize("name", ["mamba-recurrent", "lfm2-convolution", "bloom-alibi"])
def test_models_whose_cache_cannot_be_joined_run_one_batch_after_the_other(load, name):
    notices = []
    model, tokenizer = load(name)
    engine = BatchedEngine(model, tokenizer, notify=notices.append)
    found = ask(engine, PROMPTS[:4])
    engine.close()

    assert [greedy(model, prompt, 12) for prompt in PROMPTS[:4]] == found
    assert not engine.stats().continuous
    assert "one batch a time" in notices[0]["text"]


def test_a_prompt_longer_than_a_pass_is_read_in_parts_while_others_go_on(start, load):
    engine, (model, _) = start(limits=BatchLimits(rows=4, read=16)), load()
    long = tuple((5 * place) % 90 + 2 for place in range(100))
    first = engine.submit(Request(PROMPTS[0], LONG))
    found = ask(engine, [long, *PROMPTS[:5], long[:50], long])

    assert [greedy(model, prompt, 12) for prompt in (long, *PROMPTS[:5], long[:50], long)] == found
    assert greedy(model, PROMPTS[0], 200) == list(first.reply().tokens)


def test_a_cache_that_may_hold_little_is_shared_by_few(start, load):
    engine, (model, _) = start(limits=BatchLimits(rows=12, cache=100)), load()
    found = ask(engine)

    assert [greedy(model, prompt, 12) for prompt in PROMPTS] == found
    assert engine.stats().steps > 4 * 12


def test_a_seed_writes_the_same_whoever_shares_the_batch(start):
    engine = start()
    settings = Generation(max_new_tokens=12, temperature=1.2, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=7)
    alone = ask(engine, PROMPTS[:1], settings)
    busy = [engine.submit(Request(prompt, LONG)) for prompt in PROMPTS]
    mixed = ask(engine, PROMPTS[:1], settings)

    assert alone == mixed
    assert alone != ask(engine, PROMPTS[:1], settings.model_copy(update={"seed": 8}))
    for handle in busy:
        handle.cancel()


def test_each_request_has_settings_of_its_own_in_one_batch(start):
    """Whatever stands beside it, a request is answered as in a batch of its own."""
    engine = start()
    kinds = [
        Generation(max_new_tokens=9),
        Generation(max_new_tokens=9, presence_penalty=2, frequency_penalty=1.5),
        Generation(max_new_tokens=9, repetition_penalty=3),
        Generation(max_new_tokens=9, temperature=1, seed=1),
        Generation(max_new_tokens=9, temperature=1, seed=1, top_k=3),
        Generation(max_new_tokens=9, temperature=2, seed=1, typical_p=0.3),
        Generation(max_new_tokens=9, temperature=1, seed=3, best_of=3),
        Generation(max_new_tokens=9, num_beams=3),
        Generation(max_new_tokens=9, constraint={"type": "choice", "choices": ["moon", "rain"]}),
        Generation(max_new_tokens=9, temperature=1, seed=1, constraint={"type": "regex", "pattern": "[a-f ]+"}),
    ]
    alone = [ask(engine, PROMPTS[:1], settings) for settings in kinds]
    handles = [engine.submit(Request(PROMPTS[0], settings)) for settings in kinds]

    assert [found[0] for found in alone] == [list(handle.reply(60).tokens) for handle in handles]
    assert len({tuple(found[0]) for found in alone}) > 5


def test_beams_find_what_transformers_finds(start, load):
    engine, (model, _) = start(), load()
    tokens = torch.tensor([PROMPTS[1]])
    config = GenerationConfig(max_new_tokens=8, num_beams=4, do_sample=False, pad_token_id=0, eos_token_id=5)
    expected = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=config)
    expected = expected[0, len(PROMPTS[1]) :].tolist()
    found = ask(engine, [PROMPTS[1]], Generation(max_new_tokens=8, num_beams=4), stop_ids=(5,))

    assert [expected[: expected.index(5)] if 5 in expected else expected] == found


# --- the next turn of a talk


def talk(engine: BatchedEngine, model, prompt: tuple[int, ...], turns: int, **options) -> None:
    """Ask with all that was said so far and a few tokens more; every answer is what the whole prompt gets."""
    for turn in range(turns):
        (found,) = ask(engine, [prompt], **options)

        assert greedy(model, prompt, 12) == found
        prompt = (*prompt, *found, *PROMPTS[turn][:3])


@pytest.mark.parametrize("name", ["qwen3", "gemma2-windowed", "gemma3-windowed"])
def test_the_next_turn_reads_only_what_is_new(start, load, name):
    engine, (model, _) = start(name, limits=BatchLimits(kept=200)), load(name)
    talk(engine, model, PROMPTS[2], 4)
    size = len(PROMPTS[2]) + 11  # the last token of an answer is not read

    assert engine.stats().reused_tokens == sum(size + turn * 15 for turn in range(3))


def test_talks_that_alternate_are_kept_as_long_as_there_is_room(start, load):
    """The one that was of no use for longest goes first; what is longer than the room is not kept at all."""
    engine, (model, _) = start(limits=BatchLimits(rows=2, kept=70)), load()
    first, second, third = (tuple((7 * place + 13 * row) % 90 + 2 for place in range(20)) for row in range(3))
    reused = []
    for prompt in (first, second, first, third, second, first * 4, third):
        (found,) = ask(engine, [prompt])
        reused.append(engine.stats().reused_tokens)

        assert greedy(model, prompt, 12) == found
    assert reused == [0, 0, 19, 19, 19, 19, 38]


def test_nothing_is_kept_between_adapters_or_where_it_is_not_wanted(start, load, adapters):
    engine = start(limits=BatchLimits(kept=500))
    engine.load_adapter("a", adapters[0])
    base, tuned = load()[0], with_adapter(load, adapters[0])
    talk(engine, base, PROMPTS[2], 2)
    before = engine.stats().reused_tokens
    talk(engine, tuned, PROMPTS[2], 1, adapter="a")
    without = start()
    talk(without, base, PROMPTS[2], 2)

    assert before == engine.stats().reused_tokens > 0
    assert without.stats().reused_tokens == 0
    engine.unload_adapter("a")
    engine.load_adapter("a", adapters[1])  # another of the same name
    talk(engine, with_adapter(load, adapters[1]), PROMPTS[2], 2, adapter="a")


# --- adapters


def with_adapter(load, folder: Path):
    from peft import PeftModel

    return PeftModel.from_pretrained(load()[0], folder).eval()


@pytest.mark.parametrize("bearable", [0, 1 << 21], ids=["moving", "stacked"])
def test_adapters_share_a_batch_and_answer_as_peft_does(start, load, adapters, monkeypatch, bearable):
    monkeypatch.setattr(adapter_rows, "_IN_VAIN_CPU", bearable)
    engine = start()
    for number, folder in enumerate(adapters):
        engine.load_adapter(f"a{number}", folder)
    names = [None, "a0", "a1", "a2"]
    handles = [engine.submit(Request(p, GREEDY, adapter=names[row % 4])) for row, p in enumerate(PROMPTS)]
    found = [list(handle.reply(60).tokens) for handle in handles]
    models = [load()[0], *(with_adapter(load, folder) for folder in adapters)]

    assert [greedy(models[row % 4], prompt, 12) for row, prompt in enumerate(PROMPTS)] == found
    assert len({tuple(greedy(model, PROMPTS[0], 12)) for model in models}) == 4
    assert [(each.name, each.rank) for each in engine.adapters()] == [("a0", 4), ("a1", 8), ("a2", 3)]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(("name", "target"), [("gpt2", "c_attn"), ("lfm2-convolution", "q_proj")])
def test_adapters_fit_other_layers_and_batches_that_cannot_be_joined(start, load, tmp_path, name, target):
    engine, (model, _) = start(name), load(name)
    torch.manual_seed(3)
    wrapped = get_peft_model(model, LoraConfig(r=3, target_modules=[target], init_lora_weights=False)).eval()
    wrapped.save_pretrained(tmp_path)
    engine.load_adapter("a", tmp_path)
    handles = [engine.submit(Request(PROMPTS[row % 2], GREEDY, adapter=("a", None)[row // 2])) for row in range(4)]
    beams = engine.submit(Request(PROMPTS[0], Generation(max_new_tokens=12, num_beams=2), adapter="a"))
    found = [list(handle.reply(60).tokens) for handle in handles]
    with wrapped.disable_adapter():
        plain = [greedy(wrapped, prompt, 12) for prompt in PROMPTS[:2]]

    assert [greedy(wrapped, prompt, 12) for prompt in PROMPTS[:2]] + plain == found
    assert found[0] != found[2]
    assert len(beams.reply(60).tokens) == 12


def test_a_blend_is_the_weighted_sum_of_its_adapters(start, load, adapters):
    engine = start()
    engine.load_adapter("a0", adapters[0])
    engine.load_adapter("a1", adapters[1])
    blended = with_adapter(load, adapters[0])
    blended.load_adapter(str(adapters[1]), "other")
    blended.add_weighted_adapter(["default", "other"], [0.3, 0.6], "sum", combination_type="cat")
    blended.set_adapter("sum")
    found = ask(engine, adapter={"a0": 0.3, "a1": 0.6})

    assert [greedy(blended, prompt, 12) for prompt in PROMPTS] == found


def test_adapters_come_and_go_while_others_write(start, load, adapters):
    engine = start()
    engine.load_adapter("a", adapters[0])
    running = engine.submit(Request(PROMPTS[0], LONG, adapter="a"))
    pieces = running.pieces(timeout=60)
    next(pieces)
    engine.load_adapter("b", adapters[1])
    engine.unload_adapter("a")
    with pytest.raises(UnknownAdapterError, match="no adapter called 'a'"):
        engine.submit(Request(PROMPTS[0], GREEDY, adapter="a"))
    engine.load_adapter("a", adapters[2])  # the name is free at once
    written = [*(piece.tokens for piece in pieces)]

    assert greedy(with_adapter(load, adapters[0]), PROMPTS[0], 200)[1:] == [t for tokens in written for t in tokens]
    assert ask(engine, adapter="a") == [greedy(with_adapter(load, adapters[2]), prompt, 12) for prompt in PROMPTS]
    assert [each.name for each in engine.adapters()] == ["b", "a"]


def test_adapters_that_cannot_run_beside_others_are_refused_with_the_way_out(start, load, adapters, tmp_path):
    engine = start()
    dora = get_peft_model(load()[0], LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    dora.save_pretrained(tmp_path / "dora")
    other = get_peft_model(load("llama")[0], LoraConfig(r=2, target_modules=["q_proj"]))
    weights = other.state_dict()
    other.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight = torch.nn.Parameter(
        torch.zeros(2, 7)
    )
    del weights
    other.save_pretrained(tmp_path / "narrow")
    (tmp_path / "none").mkdir()
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "adapter_config.json").write_bytes((adapters[0] / "adapter_config.json").read_bytes())
    (tmp_path / "pickle" / "adapter_model.bin").write_bytes(b"a pickle")

    for folder, said in {
        "dora": "is a dora adapter, and only LoRA runs beside others: make it a plain LoRA with",
        "narrow": "does not fit the model: model.layers.0.self_attn.q_proj takes 32 numbers to 32, and the adapter 7",
        "none": "has no adapter_config.json",
        "pickle": "has no adapter_model.safetensors; adapters are loaded from safetensors files only",
    }.items():
        with pytest.raises(UserError, match=said):
            engine.load_adapter("x", tmp_path / folder)
    engine.load_adapter("x", adapters[0])
    with pytest.raises(UserError, match="there is an adapter called 'x' already"):
        engine.load_adapter("x", adapters[1])
    assert ask(engine, PROMPTS[:1])


# --- who asks, waits and leaves


def test_a_request_that_is_cancelled_stops_computing(start):
    engine = start()
    handle = engine.submit(Request(PROMPTS[0], Generation(max_new_tokens=240)))
    pieces = handle.pieces(timeout=60)
    next(pieces)
    handle.cancel()
    last = [*pieces][-1]
    steps = engine.stats().steps

    assert last.finish_reason == "cancelled"
    assert handle.usage.completion_tokens < 240
    time.sleep(0.05)
    assert (engine.stats().steps, engine.stats().running) == (steps, 0)


def test_a_client_that_never_reads_holds_nobody_up(start, load):
    engine, (model, _) = start(limits=BatchLimits(rows=2)), load()
    silent = [engine.submit(Request(prompt, GREEDY)) for prompt in PROMPTS]
    found = ask(engine, PROMPTS[:2])

    assert [greedy(model, prompt, 12) for prompt in PROMPTS[:2]] == found
    assert [greedy(model, prompt, 12) for prompt in PROMPTS] == [list(each.reply().tokens) for each in silent]


def test_a_deadline_ends_a_reply_even_while_it_waits(start):
    engine = start(limits=BatchLimits(rows=1))
    running = engine.submit(Request(PROMPTS[0], LONG))
    late = engine.submit(Request(PROMPTS[1], GREEDY, deadline_seconds=0.0))

    assert (late.reply(60).finish_reason, late.usage.completion_tokens) == ("timeout", 0)
    running.cancel()


def test_a_full_queue_says_when_to_come_again(start):
    engine = start(limits=BatchLimits(rows=1), waiting=2)
    taken = [engine.submit(Request(PROMPTS[0], LONG)) for _ in range(3)]
    with pytest.raises(QueueFullError) as refused:
        engine.submit(Request(PROMPTS[0], GREEDY))

    assert refused.value.wait_seconds >= 1
    assert engine.stats().refused == 1
    for handle in taken:
        handle.cancel()


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        (Request((), GREEDY), UserError, "the prompt is empty"),
        (Request((2,) * 256, GREEDY), ContextTooLongError, "256 tokens, and prompt and answer may have 256 together"),
        (Request((2, 99999), GREEDY), UserError, "token ids beyond the"),
        (Request((2, -1), GREEDY), UserError, "token ids beyond the"),
        (Request((2,), GREEDY, adapter="nosuch"), UnknownAdapterError, "no adapter called 'nosuch'; none is loaded"),
        (Request((2,), Generation(temperature=1, best_of=2, best_by="chrf")), UserError, "needs the conversation"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(start, request_, error, said):
    with pytest.raises(error, match=said):
        start().submit(request_)


def test_a_reply_ends_where_the_context_is_full(start):
    (found,) = ask(start(), [(2,) * 250], LONG)

    assert len(found) == 6


def test_an_engine_that_drains_finishes_what_it_took_and_then_takes_nothing(start, load):
    engine, (model, _) = start(), load()
    handles = [engine.submit(Request(prompt, GREEDY)) for prompt in PROMPTS]
    engine.close(drain=True)

    assert [greedy(model, prompt, 12) for prompt in PROMPTS] == [list(handle.reply().tokens) for handle in handles]
    with pytest.raises(EngineClosedError):
        engine.submit(Request(PROMPTS[0], GREEDY))


def test_an_engine_that_does_not_drain_cancels(start):
    engine = start()
    handles = [engine.submit(Request(prompt, LONG)) for prompt in PROMPTS]
    engine.close(drain=False)

    assert "cancelled" in {handle.reply().finish_reason for handle in handles}


def test_a_fault_in_one_pass_ends_its_replies_and_not_the_engine(start, load, monkeypatch):
    engine, (model, _) = start(), load()
    slots = engine._slots
    run = slots.run
    monkeypatch.setattr(slots, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(ReplyFailedError, match="out of memory"):
        engine.submit(Request(PROMPTS[0], GREEDY)).reply(60)
    monkeypatch.setattr(slots, "run", run)

    assert [greedy(model, PROMPTS[0], 12)] == ask(engine, PROMPTS[:1])
    assert engine.stats().finished == {"error": 1, "length": 1}


def test_a_callback_gets_all_pieces_without_a_thread_that_waits(start):
    engine, pieces, done = start(), [], threading.Event()
    handle = engine.submit(Request(PROMPTS[0], GREEDY))
    handle.on_piece(lambda piece: (pieces.append(piece), piece.finish_reason and done.set()))

    assert done.wait(60)
    assert sum(len(piece.tokens) for piece in pieces) == 12
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"]


def test_many_threads_ask_at_once(start, load):
    engine, (model, _) = start(), load()
    found: dict[int, list[int]] = {}

    def client(number: int) -> None:
        found[number] = ask(engine, PROMPTS[number : number + 1])[0]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [greedy(model, prompt, 12) for prompt in PROMPTS] == [found[number] for number in range(len(PROMPTS))]


def test_counts_add_up(start):
    engine = start()
    ask(engine)
    stats = engine.stats()

    assert (stats.submitted, stats.waiting, stats.running) == (12, 0, 0)
    assert stats.prompt_tokens == sum(map(len, PROMPTS))
    assert stats.completion_tokens == 12 * 12
    assert stats.steps < 12 * 12


def test_who_waits_for_a_piece_may_lose_patience():
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        next(Handle(Request((2,), GREEDY)).pieces(timeout=0.01))


def test_a_closed_event_loop_cancels_its_reply():
    handle = Handle(Request((2,), GREEDY))

    def closed(_):
        raise RuntimeError("Event loop is closed")

    handle.on_piece(closed)
    from tunesmith.generation.requests import Piece

    handle.write(Piece("a", (3,)), 1)
    assert handle.cancelled
