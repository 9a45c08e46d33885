"""Tests of weight syncs into a vLLM engine in this process: correct ones pass, and every corruption is caught and named."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from rollout.engines.base import EngineSettings, generate
from rollout.errors import EngineError, WeightSyncError
from rollout.types import Completion, Request, SamplingParams
from rollout.weight_sync.proof import TOLERANCE, perturb, read_safetensors, sampled_gap
from rollout.weight_sync.weights import WeightUpdate, pack_weights
from rollout.worker import RolloutWorker

PROMPTS = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]


@pytest.fixture(scope="module")
def worker(tiny_qwen2: Path) -> Iterator[RolloutWorker]:
    worker = RolloutWorker("vllm", EngineSettings(max_tokens=64, max_sequences=32))
    worker.load_model(tiny_qwen2, version=0)
    yield worker
    worker.close()


def update_of(folder: Path, version: int, seed: int) -> WeightUpdate:
    return pack_weights(perturb(read_safetensors(folder), seed).items(), version, torch.bfloat16)


def sampled(completions: Sequence[Completion]) -> list[tuple[list[int], list[float]]]:
    return [(completion.tokens.tolist(), completion.logprobs.tolist()) for completion in completions]


def test_in_place_reload_equals_a_fresh_engine(worker: RolloutWorker) -> None:
    proof = worker.prove_reload(PROMPTS)
    assert proof.in_place and proof.gap <= TOLERANCE


def test_a_synced_engine_samples_from_the_new_weights(worker: RolloutWorker, tiny_qwen2: Path) -> None:
    requests = [Request(str(i), tuple(prompt), SamplingParams(max_tokens=8), seed=i) for i, prompt in enumerate(PROMPTS)]
    worker.sync(update_of(tiny_qwen2, version=1, seed=1), "in_place")
    in_place = generate(worker.engine, requests, 60)
    worker.sync(update_of(tiny_qwen2, version=2, seed=1), "rebuild")
    rebuilt = generate(worker.engine, requests, 60)
    assert sampled(in_place) == sampled(rebuilt)
    assert [(c.version, d.version) for c, d in zip(in_place, rebuilt, strict=True)] == [(1, 2)] * 3


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("drop", r"layers.0\S+ was not received"),
        ("stale", "weight differs from what was sent"),
        ("transpose", "weight differs from what was sent"),
        ("stale_kernel", "the kernel of (model.embed_tokens|lm_head) computes with another weight"),
    ],
)
def test_a_corrupted_sync_names_the_tensor(
    fault: str, says: str, worker: RolloutWorker, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker._last_update = update_of(tiny_qwen2, version=3, seed=3)  # the source of a stale tensor
    monkeypatch.setenv("GRPO_FAULT", fault)
    with pytest.raises(WeightSyncError, match=says):
        worker.sync(update_of(tiny_qwen2, version=4, seed=4), "in_place")
    monkeypatch.delenv("GRPO_FAULT")
    worker.sync(update_of(tiny_qwen2, version=5, seed=5), "in_place")


@pytest.mark.parametrize("layer", ["model.layers.1.mlp.gate_up_proj", "model.layers.0.self_attn.qkv_proj", "model.norm", "lm_head"])
def test_a_layer_with_stale_weights_is_named(layer: str, worker: RolloutWorker, tiny_qwen2: Path) -> None:
    """The engine differs from what was sent in one layer only, as if the reload had missed it."""
    from rollout.weight_sync.readback import mismatched_weights

    sent = {name: tensor.to(torch.bfloat16) for name, tensor in perturb(read_safetensors(tiny_qwen2), seed=6).items()}
    worker.sync(pack_weights(sent.items(), 6, torch.bfloat16), "in_place")
    part = {"gate_up_proj": "up_proj", "qkv_proj": "k_proj", "norm": "norm", "lm_head": "embed_tokens"}[layer.rpartition(".")[2]]
    name = f"{layer.rpartition('.')[0]}.{part}.weight" if layer != "lm_head" else "model.embed_tokens.weight"
    sent[name] = sent[name] * 1.01
    problems = worker.engine._llm.apply_model(lambda model: mismatched_weights(model, sent, seed=0))[0]
    assert any(layer in problem for problem in problems)
    assert len(problems) <= 4  # a tied embedding is in the model twice, as table and as kernel


def sampled_by_two_processes(folder: Path) -> list[Completion]:
    two = RolloutWorker("vllm", EngineSettings(max_tokens=64, max_sequences=32, tensor_parallel=2, num_threads=1))
    two.load_model(folder, version=0)
    proof = two.prove_reload(PROMPTS)
    assert not proof.in_place and "cannot be read back" in proof.why
    try:
        return sampled_after_a_rebuild(two, folder)
    finally:
        two.close()


def sampled_after_a_rebuild(worker: RolloutWorker, folder: Path) -> list[Completion]:
    worker.sync(update_of(folder, version=8, seed=8), "rebuild")
    requests = [Request(f"two{i}", tuple(prompt), SamplingParams(max_tokens=8, temperature=0), seed=i) for i, prompt in enumerate(PROMPTS)]
    return generate(worker.engine, requests, 60)


@pytest.mark.slow
def test_two_processes_sample_what_one_samples(tiny_qwen2: Path, worker: RolloutWorker) -> None:
    expected = sampled_after_a_rebuild(worker, tiny_qwen2)
    # Its own process, because here it would shut down the process groups of the other engines.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        found = elsewhere.submit(sampled_by_two_processes, tiny_qwen2).result(timeout=200)
    assert sampled_gap(found, expected) < 0.05 and {completion.version for completion in found} == {8}


def test_many_seeded_requests_repeat_exactly_and_differ(worker: RolloutWorker) -> None:
    requests = [Request(f"r{i}", tuple(range(5, 40)), SamplingParams(max_tokens=12, temperature=0.7), seed=1000 + i) for i in range(64)]
    first, second = generate(worker.engine, requests, 60), generate(worker.engine, requests, 60)
    assert sampled(first) == sampled(second)
    assert len({tuple(tokens) for tokens, _ in sampled(first)}) > 32


def test_text_may_be_a_stop_string_alone(worker: RolloutWorker) -> None:
    requests = [Request(f"free{i}", (5, 6, 7), SamplingParams(max_tokens=1), seed=i) for i in range(32)]
    seed, text = next((i, c.text) for i, c in enumerate(generate(worker.engine, requests, 60)) if c.text.isascii() and c.text.isprintable())
    (stopped,) = generate(worker.engine, [Request("stopped", (5, 6, 7), SamplingParams(max_tokens=1, stop=(text,)), seed=seed)], 60)
    assert (stopped.text, stopped.finish) == (text, "stop")


def test_an_engine_error_can_be_pickled(tiny_qwen2: Path) -> None:
    """vLLM raises pydantic's ValidationError, which cannot be pickled."""
    worker = RolloutWorker("vllm", EngineSettings(max_tokens=512))
    with pytest.raises(EngineError, match=r"(?s)^ValidationError: .*max_model_len .*=256") as raised:
        worker.load_model(tiny_qwen2, 0)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
