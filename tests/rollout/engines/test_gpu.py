"""Tests of the engines that need a GPU: reloads in place, sleep, several GPUs for one engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rollout.engines.base import EngineSettings, generate
from rollout.types import Request, SamplingParams
from rollout.weight_sync.proof import perturb, read_safetensors, sampled_gap
from rollout.weight_sync.weights import pack_weights
from rollout.worker import RolloutWorker

pytestmark = pytest.mark.gpu
PROMPTS = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]
REQUESTS = [Request(str(i), tuple(prompt), SamplingParams(max_tokens=8, temperature=0), seed=i) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture
def worker(tiny_qwen2: Path) -> Iterator[RolloutWorker]:
    worker = RolloutWorker("vllm", EngineSettings(max_tokens=64, max_sequences=32, gpu_memory_frac=0.3, sleeps=True))
    worker.load_model(tiny_qwen2, version=0)
    yield worker
    worker.close()


def test_weights_are_replaced_in_place_with_proof(worker: RolloutWorker) -> None:
    assert worker.prove_reload(PROMPTS).in_place


def test_sleep_releases_memory_and_wake_restores_the_engine(worker: RolloutWorker, tiny_qwen2: Path) -> None:
    before = generate(worker.engine, REQUESTS, 60)
    free_awake, total = torch.cuda.mem_get_info()
    worker.sleep()
    assert torch.cuda.mem_get_info()[0] - free_awake > 0.2 * total
    worker.wake()
    assert sampled_gap(generate(worker.engine, REQUESTS, 60), before) < 1e-3
    worker.sleep()
    worker.wake()
    update = pack_weights(perturb(read_safetensors(tiny_qwen2), seed=1).items(), 1, torch.bfloat16)
    worker.sync(update, "in_place")
    assert {completion.version for completion in generate(worker.engine, REQUESTS, 60)} == {1}


def test_weights_are_hashed_and_proven_on_the_gpu(worker: RolloutWorker, tiny_qwen2: Path) -> None:
    changed = perturb(read_safetensors(tiny_qwen2), seed=1)
    on_gpu = pack_weights(((name, tensor.cuda()) for name, tensor in changed.items()), 1, torch.bfloat16, "cuda_ipc")
    on_host = pack_weights(changed.items(), 1, torch.bfloat16, "nixl")
    assert on_gpu.manifest == on_host.manifest  # the same checksums on any device
    assert worker.sync(on_gpu, "in_place").version == 1


def test_two_gpus_sample_what_one_samples(worker: RolloutWorker, tiny_qwen2: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    two = RolloutWorker("vllm", EngineSettings(max_tokens=64, max_sequences=32, gpu_memory_frac=0.3, tensor_parallel=2))
    two.load_model(tiny_qwen2, version=0)
    assert sampled_gap(generate(two.engine, REQUESTS, 60), generate(worker.engine, REQUESTS, 60)) < 0.05
    two.close()
