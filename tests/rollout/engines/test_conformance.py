"""What every engine does, asked of each alike: vLLM, transformers, and the scripted one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.config import Tags
from rollout.engines.base import EngineSettings, RolloutEngine, generate
from rollout.errors import WeightSyncError
from rollout.types import Request, Sampling
from rollout.weight_sync.proof import perturb, read_safetensors
from rollout.weight_sync.weights import Transport, WeightUpdate, pack_weights

PROMPTS = [(5, 6, 7), (8, 9, 10, 11), (12, 13)]
SAMPLING = Sampling(max_tokens=8, temperature=0.7)


def made(kind: str) -> RolloutEngine:
    # transformers makes logits in the model's own type, and in bfloat16 the likeliest tokens are often as likely as each other
    settings = EngineSettings(max_tokens=64, max_sequences=16, dtype="float32" if kind == "hf" else "bfloat16", keep=Tags().texts)
    if kind == "vllm":
        from rollout.engines.vllm import VllmEngine

        return VllmEngine(settings)
    if kind == "hf":
        from rollout.engines.hf import HfEngine

        return HfEngine(settings)
    from rollout.engines.scripted import ScriptedEngine

    return ScriptedEngine(lambda request, version: [(request.seed + version + i) % 200 + 40 for i in range(20)], settings.keep)


@pytest.fixture(scope="module", params=["vllm", "hf", "scripted"])
def engine(request: pytest.FixtureRequest, tiny_qwen2: Path) -> Iterator[RolloutEngine]:
    engine = made(request.param)
    engine.load_model(tiny_qwen2, version=3)
    yield engine
    engine.close()


def requests(num: int = 6, sampling: Sampling = SAMPLING, name: str = "r") -> list[Request]:
    return [Request(f"{name}{i}", PROMPTS[i % 3], sampling, seed=100 + i) for i in range(num)]


def update(folder: Path, version: int, seed: int, transport: Transport = "host") -> WeightUpdate:
    return pack_weights(perturb(read_safetensors(folder), seed).items(), version, torch.bfloat16, transport)


def test_a_completion_is_whole(engine: RolloutEngine) -> None:
    for completion in generate(engine, requests(), 60):
        assert 1 <= len(completion.tokens) <= 8
        assert len(completion.tokens) == len(completion.logprobs) == len(completion.trainable)
        assert all(logprob <= 0 for logprob in completion.logprobs) and all(completion.trainable)
        assert completion.finish in ("stop", "length") if len(completion.tokens) == 8 else completion.finish == "stop"
        assert completion.versions == ((0, engine.version),)


def test_a_seed_repeats_and_seeds_differ(engine: RolloutEngine) -> None:
    first, second = generate(engine, requests(12), 60), generate(engine, requests(12), 60)
    assert first == second
    assert len({completion.tokens for completion in first}) > 6


def test_more_requests_than_fit_at_once_are_all_drawn(engine: RolloutEngine) -> None:
    assert len(generate(engine, requests(40), 60)) == 40


def test_what_is_cancelled_never_comes(engine: RolloutEngine) -> None:
    asked = requests(6, name="c")
    engine.submit(asked)
    engine.cancel([asked[1].id, asked[4].id])
    came: list[str] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        finished = engine.poll(1.0)
        came += [end.request_id for end in finished if end.completion is not None and end.completion.finish != "abort"]
        if not finished and len(came) >= 4:
            break
    assert sorted(came) == ["c0", "c2", "c3", "c5"]


def test_new_weights_have_their_version_and_wrong_ones_are_refused(engine: RolloutEngine, tiny_qwen2: Path) -> None:
    before = generate(engine, requests(), 60)
    engine.load_weights(update(tiny_qwen2, version=9, seed=4))
    after = generate(engine, requests(), 60)
    assert {completion.version for completion in after} == {9}
    assert [c.tokens for c in after] != [c.tokens for c in before]
    wrong = update(tiny_qwen2, version=10, seed=5)
    name = next(iter(wrong.payload))
    with pytest.raises(WeightSyncError, match="differs from what was sent"):
        engine.load_weights(replace(wrong, payload={**wrong.payload, name: wrong.payload[name][::-1]}))
    assert engine.version == 9
    engine.load_model(tiny_qwen2, version=3)
    assert [c.tokens for c in generate(engine, requests(), 60)] == [c.tokens for c in before]


def test_weights_that_come_as_tensors_are_taken_like_bytes(engine: RolloutEngine, tiny_qwen2: Path) -> None:
    engine.load_weights(update(tiny_qwen2, version=7, seed=4))
    by_bytes = generate(engine, requests(), 60)
    engine.load_weights(update(tiny_qwen2, version=8, seed=5, transport="nixl"))
    engine.load_weights(update(tiny_qwen2, version=7, seed=4, transport="nixl"))
    assert generate(engine, requests(), 60) == by_bytes
    engine.load_model(tiny_qwen2, version=3)


# --- what only models can do ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sampler(engine: RolloutEngine) -> RolloutEngine:
    if type(engine).__name__ == "ScriptedEngine":
        pytest.skip("no model draws its completions")
    return engine


@pytest.fixture(scope="module")
def plain(tiny_qwen2: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)


def scaled_logprobs(plain: Any, prompt: tuple[int, ...], tokens: tuple[int, ...], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = plain(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def test_log_probs_are_those_of_the_distribution_drawn_from(sampler: RolloutEngine, plain: Any) -> None:
    # At temperature 0.7 a raw log-probability differs from a processed one by tenths; bfloat16 by hundredths.
    gaps = []
    for request, completion in zip(requests(), generate(sampler, requests(), 60), strict=True):
        expected = scaled_logprobs(plain, request.tokens, completion.tokens, 0.7)[range(len(completion.tokens)), completion.tokens]
        gaps += (expected - torch.tensor(completion.logprobs)).abs().tolist()
    assert sum(gaps) / len(gaps) < 0.05


def test_weights_may_change_while_samples_are_drawn(sampler: RolloutEngine, tiny_qwen2: Path) -> None:
    """Each token's log-probability is that of the version that drew it, after all tokens before it: exactly, not with keys of older weights."""
    sampler.load_model(tiny_qwen2, version=3)
    asked = requests(12, Sampling(48, temperature=0.7), name="v")
    sampler.submit(asked)
    finished = sampler.poll(0.03)
    sampler.load_weights(update(tiny_qwen2, version=4, seed=8))
    deadline = time.monotonic() + 60
    while len(finished) < 12 and time.monotonic() < deadline:
        finished += sampler.poll(1.0)
    drawn = {end.request_id: end.completion for end in finished if end.completion is not None}
    assert len(drawn) == 12
    models = {
        3: plain_model(read_safetensors(tiny_qwen2), tiny_qwen2),
        4: plain_model(perturb(read_safetensors(tiny_qwen2), 8), tiny_qwen2),
    }
    changed = [request for request in asked if len(drawn[request.id].versions) == 2]
    assert changed
    gaps: dict[str, list[float]] = {"before": [], "after": [], "by the old weights": []}
    for request in changed:
        completion = drawn[request.id]
        (start, before), (swap, after) = completion.versions
        assert (start, before, after) == (0, 3, 4) and 0 < swap < len(completion.tokens)
        by_version = {
            version: scaled_logprobs(model, request.tokens, completion.tokens, 0.7)[range(completion.num_tokens), completion.tokens]
            for version, model in models.items()
        }
        off = {version: (expected - torch.tensor(completion.logprobs)).abs() for version, expected in by_version.items()}
        gaps["before"] += off[3][:swap].tolist()
        gaps["after"] += off[4][swap:].tolist()
        gaps["by the old weights"] += off[3][swap:].tolist()
    before, after, by_old = (sum(found) / len(found) for found in gaps.values())
    assert max(before, after) < 0.15 < 1 < by_old  # bfloat16 of so sharp a model is off by 0.05
    sampler.load_model(tiny_qwen2, version=3)


def plain_model(tensors: dict[str, torch.Tensor], folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict({name: tensor.bfloat16().float() for name, tensor in tensors.items()}, strict=False)
    return model


@pytest.mark.parametrize("cut", [Sampling(8, top_k=1), Sampling(8, top_p=1e-6), Sampling(8, min_p=1.0)])
def test_filters_that_leave_one_token_draw_the_likeliest_with_certainty(sampler: RolloutEngine, cut: Sampling) -> None:
    greedy = generate(sampler, requests(3, Sampling(8, temperature=0.0), name="g"), 60)
    filtered = generate(sampler, requests(3, cut, name="f"), 60)
    assert [c.tokens for c in filtered] == [c.tokens for c in greedy]
    assert all(logprob == pytest.approx(0.0, abs=1e-5) for c in filtered for logprob in c.logprobs)


def test_a_stop_string_is_the_end_of_the_text(sampler: RolloutEngine) -> None:
    free = generate(sampler, requests(96, Sampling(8, 1.0), name="w"), 60)
    index, text = next((i, c.text) for i, c in enumerate(free) if len(c.text) > 3 and c.text[:3].isascii() and c.text[:3].isprintable())
    stopped = generate(sampler, requests(96, Sampling(8, 1.0, stop=(text[1:3],)), name="s"), 60)[index]
    assert stopped.finish == "stop" and stopped.text == text[: text.find(text[1:3]) + 2]
    assert stopped.tokens == free[index].tokens[: len(stopped.tokens)] and len(stopped.logprobs) == len(stopped.tokens)


# --- what a model's folder says of its tokens -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(plain: Any) -> dict[int, int]:
    """Of the first two prompts, the token that is likeliest to follow."""
    with torch.no_grad():
        return {number: int(plain(torch.tensor([PROMPTS[number]])).logits[0, -1].argmax()) for number in (0, 1)}


@pytest.fixture
def peculiar(engine: RolloutEngine, tiny_qwen2: Path, tmp_path: Path, second: dict[int, int], tokenizer: Any) -> Iterator[RolloutEngine]:
    """The engine with a model whose tags are special tokens, one of them as likely as the first prompt's likeliest token, and which names the
    second prompt's likeliest as another end."""
    from rollout.weight_sync.proof import write_model

    tensors = read_safetensors(tiny_qwen2)
    embedding = tensors["model.embed_tokens.weight"]
    for name in ("<think>", "<|pad|>"):
        embedding[tokenizer.convert_tokens_to_ids(name)] = embedding[second[0]]
    write_model(tensors, tiny_qwen2, tmp_path, torch.float32)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in saved["added_tokens"]:
        token["special"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    ends = {"eos_token_id": [tokenizer.eos_token_id, second[1]]}
    (tmp_path / "generation_config.json").write_text(json.dumps(ends))
    engine.load_model(tmp_path, version=3)
    yield engine
    engine.load_model(tiny_qwen2, version=3)


def first_prompt(num: int, sampling: Sampling, name: str) -> list[Request]:
    return [Request(f"{name}{i}", PROMPTS[0], sampling, seed=i) for i in range(num)]


def test_tags_that_are_special_tokens_stay_in_the_text_and_others_do_not(peculiar: RolloutEngine, tokenizer: Any) -> None:
    think, pad = (tokenizer.convert_tokens_to_ids(name) for name in ("<think>", "<|pad|>"))
    if type(peculiar).__name__ == "ScriptedEngine":
        peculiar.script = lambda request, version: [think, pad, 40] if request.seed % 2 else [pad, 40]  # type: ignore[attr-defined]
    drawn = generate(peculiar, first_prompt(32, Sampling(2), "t"), 60)
    with_tag, with_pad = ([c for c in drawn if token in c.tokens] for token in (think, pad))
    assert with_tag and with_pad
    assert all("<think>" in completion.text for completion in with_tag)
    assert not any("<|pad|>" in completion.text for completion in drawn)


def test_a_stop_string_may_be_a_special_token(peculiar: RolloutEngine, tokenizer: Any) -> None:
    think, pad = (tokenizer.convert_tokens_to_ids(name) for name in ("<think>", "<|pad|>"))
    if type(peculiar).__name__ == "ScriptedEngine":
        peculiar.script = lambda request, version: [think, pad, 40] if request.seed % 2 else [pad, 40]  # type: ignore[attr-defined]
    drawn = generate(peculiar, first_prompt(32, Sampling(4, stop=("<think>", "<|pad|>")), "x"), 60)
    ended = [completion for completion in drawn if {think, pad} & set(completion.tokens)]
    assert {completion.tokens[-1] for completion in ended} == {think, pad}
    assert all(completion.finish == "stop" for completion in ended)
    assert all(completion.text.endswith("<think>") == (completion.tokens[-1] == think) for completion in ended)


def test_every_end_token_that_generation_config_names_ends_a_completion(
    peculiar: RolloutEngine, second: dict[int, int], tokenizer: Any
) -> None:
    end = second[1]
    if type(peculiar).__name__ == "ScriptedEngine":
        peculiar.script = lambda request, version: [40, end]  # type: ignore[attr-defined]
    drawn = generate(peculiar, [Request(f"e{i}", PROMPTS[1], Sampling(8, temperature=0.1), seed=i) for i in range(16)], 60)
    ended = [completion for completion in drawn if end in completion.tokens]
    assert ended
    assert all(completion.tokens.index(end) == len(completion.tokens) - 1 and completion.finish == "stop" for completion in ended)
