"""Tests of syncs through the pool into real engines, which must then agree with transformers as well as fresh engines do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rollout.engines.base import EngineSettings
from rollout.pool import PoolSettings, RolloutPool
from rollout.types import Completion, Prompt, SamplingParams
from rollout.weight_sync.proof import perturb, read_safetensors, write_model
from rollout.weight_sync.weights import pack_weights

pytestmark = pytest.mark.slow
PROMPTS = [Prompt(f"p{i}", tuple(range(5 + i, 12 + i))) for i in range(12)]


@pytest.fixture(scope="module")
def tiny_qwen3_moe(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Four experts, two of them for each token."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        initializer_range=0.15,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("tiny_qwen3_moe")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_pool(local_ray: None) -> Iterator[Callable[[Path], RolloutPool]]:
    made: list[RolloutPool] = []

    def make(folder: Path) -> RolloutPool:
        made.append(RolloutPool("vllm", EngineSettings(max_tokens=64, max_sequences=64), PoolSettings()))
        made[-1].load_model(folder, version=0)
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def sample(pool: RolloutPool) -> list[list[Completion]]:
    return pool.sample(PROMPTS, 4, SamplingParams(12, temperature=0.7), seed=1, step=0, deadline_s=60, progress=lambda *_: None)


def gap(folder: Path, groups: list[list[Completion]]) -> float:
    """Mean |log-prob difference| by token between an engine's completions and transformers with the weights of ``folder``."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    differences: list[float] = []
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt.tokens, *completion.tokens]])).logits[0, len(prompt.tokens) - 1 : -1]
            expected = (logits / 0.7).log_softmax(-1)[range(completion.num_tokens), completion.tokens]
            differences += (expected - torch.tensor(completion.logprobs)).abs().tolist()
    return sum(differences) / len(differences)


@pytest.mark.parametrize(("model", "in_place"), [("tiny_qwen2", True), ("tiny_qwen3_moe", False)])
def test_synced_and_fresh_engines_have_the_same_gap(
    model: str, in_place: bool, request: pytest.FixtureRequest, make_pool: Callable[[Path], RolloutPool], tmp_path: Path
) -> None:
    # vLLM 0.32 on a CPU does not repack experts when it reloads them. The self-test must notice, so that the engine is rebuilt instead.
    folder = request.getfixturevalue(model)
    changed = perturb(read_safetensors(folder), seed=3)
    write_model(changed, folder, tmp_path, torch.bfloat16)
    pool = make_pool(folder)
    assert pool.prove_reload(PROMPTS).in_place == in_place
    before = sample(pool)
    pool.sync(lambda: ray.put(pack_weights(changed.items(), 1, torch.bfloat16)), 1)
    synced, fresh = sample(pool), sample(make_pool(tmp_path))
    assert {completion.version for group in synced for completion in group} == {1}
    stale, found, expected = gap(tmp_path, before), gap(tmp_path, synced), gap(tmp_path, fresh)
    assert found == pytest.approx(expected, abs=1e-6) and expected < 0.1 and stale > 5 * expected
