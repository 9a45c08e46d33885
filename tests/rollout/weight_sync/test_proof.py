"""Tests of the self-test of in-place syncing, which only an engine that replaces all weights may pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch

from rollout.errors import WeightSyncError
from rollout.types import Completion, Finished, Request
from rollout.weight_sync.proof import ReloadProof, perturb, prove_reload, read_safetensors, sampled_gap, write_model
from rollout.weight_sync.weights import WeightUpdate, unpack_weights


def completion(tokens: Sequence[int], logprobs: Sequence[float]) -> Completion:
    return Completion.of(tuple(tokens), tuple(logprobs), (True,) * len(tokens), "", "length", ((0, 0),))


class PlainEngine:
    """Samples greedily from a transformers model. ``forgets`` names a tensor that load_weights leaves as it was."""

    def __init__(self, forgets: str = "", refuses: bool = False):
        self.forgets, self.refuses, self.version = forgets, refuses, -1
        self.loaded: list[Path] = []
        self._waiting: list[Request] = []

    def load_model(self, folder: Path, version: int) -> None:
        from transformers import AutoModelForCausalLM

        self.model, self.version = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), version
        self.loaded.append(folder)

    def load_weights(self, update: WeightUpdate) -> None:
        if self.refuses:
            raise WeightSyncError("lm_head is stale")
        self.model.load_state_dict({k: v for k, v in unpack_weights(update).items() if k != self.forgets}, strict=False)
        self.version = update.version

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting += requests

    def poll(self, timeout_s: float) -> list[Finished]:
        requests, self._waiting = self._waiting, []
        return [Finished(request.id, self._generate(request)) for request in requests]

    def cancel(self, request_ids: Iterable[str]) -> None:
        self._waiting = []

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...

    @torch.no_grad()
    def _generate(self, request: Request) -> Completion:
        tokens, logprobs = list(request.tokens), []
        for _ in range(request.sampling.max_tokens):
            best = self.model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1).max(-1)
            tokens.append(best.indices.item())
            logprobs.append(best.values.item())
        return completion(tokens[len(request.tokens) :], logprobs)


def prove(engine: PlainEngine, folder: Path) -> ReloadProof:
    engine.load_model(folder, version=4)
    return prove_reload(engine, folder, [(5, 6, 7), (8, 9)], "float32")


def test_an_engine_that_replaces_all_weights_passes(tiny_qwen2: Path) -> None:
    engine = PlainEngine()
    proof = prove(engine, tiny_qwen2)
    assert proof.in_place and proof.gap <= 1e-3
    assert engine.loaded[-1] == tiny_qwen2 and engine.version == 4  # restored


@pytest.mark.parametrize("forgets", ["lm_head.weight", "model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.down_proj.weight"])
def test_an_engine_that_forgets_one_tensor_fails(tiny_llama: Path, forgets: str) -> None:
    engine = PlainEngine(forgets)
    proof = prove(engine, tiny_llama)
    assert not proof.in_place and proof.gap > 0.01
    assert engine.loaded[-1] == tiny_llama


def test_an_engine_that_refuses_fails_with_its_reason(tiny_qwen2: Path) -> None:
    engine = PlainEngine(refuses=True)
    proof = prove(engine, tiny_qwen2)
    assert (proof.in_place, proof.why) == (False, "lm_head is stale") and engine.loaded[-1] == tiny_qwen2


def test_tensors_are_perturbed_by_half_their_spread(tiny_qwen2: Path) -> None:
    before = read_safetensors(tiny_qwen2) | {"norm": torch.ones(1000)}
    after = perturb(before)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        noise = (after[name] - tensor).std().item()
        expected = 0.1 if name == "norm" else 0.5 * tensor.std().item()
        assert noise == pytest.approx(expected, rel=5 / tensor.numel() ** 0.5), name


def test_a_written_model_changes_only_its_tensors(tiny_qwen2: Path, tmp_path: Path) -> None:
    perturbed = perturb(read_safetensors(tiny_qwen2))
    write_model(perturbed, tiny_qwen2, tmp_path, torch.float32)
    assert all(torch.equal(tensor, perturbed[name]) for name, tensor in read_safetensors(tmp_path).items())
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in tiny_qwen2.iterdir()}


@pytest.mark.parametrize(
    ("first", "second", "gap"),
    [
        ([(7, -1.0), (8, -2.0)], [(7, -1.0), (8, -2.0)], 0.0),
        ([(7, -1.0), (8, -2.0)], [(7, -1.5), (8, -2.1)], 0.3),  # (0.5 + 0.1) / 2
        ([(7, -1.0), (8, -2.0), (9, -3.0)], [(7, -1.0), (6, -2.0), (9, -9.0)], 0.5),  # (0 + 1) / 2, and no further
        ([], [], 0.0),
    ],
)
def test_the_gap_ends_at_the_first_different_token(first: list[tuple[int, float]], second: list[tuple[int, float]], gap: float) -> None:
    a, b = (completion([token for token, _ in pairs], [logprob for _, logprob in pairs]) for pairs in (first, second))
    assert sampled_gap([a], [b]) == pytest.approx(gap)
