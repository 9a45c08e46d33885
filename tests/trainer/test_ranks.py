"""Two ranks over gloo make the update that one makes, whatever they share out; what they hand out is whole; they stop together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing

from grpo.algorithm import GRPO
from grpo.config import Lora, OptimizerKeys, Trainer
from grpo.errors import TrainingError
from grpo.trainer.batch import Batch, make_batch
from grpo.trainer.export import checkpoint_weights
from grpo.trainer.packing import pack
from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
from grpo.trainer.ranks import RankPlace
from rollout.types import SamplingParams
from rollout.weight_sync.weights import unpack_weights

SHARDS = ("none", "gradients", "parameters")
ALGORITHM = replace(GRPO, kl_coef=0.1)


def batch_with(num_groups: int = 3) -> Batch:
    """Groups of three whose lengths differ, so that ranks have unequal shares."""
    rng = np.random.default_rng(7)
    group = [g for g in range(num_groups) for _ in range(3)]
    prompts = [rng.integers(0, 250, 3 + 2 * g).tolist() for g in range(num_groups)]
    completions = [rng.integers(0, 250, rng.integers(2, 12)).tolist() for _ in group]
    sampled = [rng.normal(-6, 1, len(c)).tolist() for c in completions]
    advantages = rng.normal(size=len(group))
    batch = make_batch([prompts[g] for g in group], completions, group=group, advantages=advantages, sampled_logprobs=sampled)
    return batch.with_weights("sequence_mean", 12)


def trainer_of(model: Path, place: RankPlace, shard: str, *, exact: bool = False, **optimizer: Any) -> PolicyTrainer:
    layout = Trainer(ranks=place.size, shard=shard if place.size > 1 else "none", precision="float32")  # type: ignore[arg-type]
    spec = TrainerSpec(
        model,
        OptimizerKeys(max_tokens_per_micro_batch=40, **optimizer),
        20,
        ALGORITHM,
        SamplingParams(1, temperature=0.8),
        num_threads=1,
        layout=layout,
    )
    if not exact:
        return PolicyTrainer(spec, place)
    from tests.trainer.conftest import exactly

    class Exact(PolicyTrainer):
        def _loaded(self) -> Any:
            return exactly(super()._loaded())

    return Exact(spec, place)


def flat(trainer: PolicyTrainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten().clone() for _, weight in checkpoint_weights(trainer.model)])


def gradient(model: Path, place: RankPlace, shard: str) -> dict[str, Any]:
    """Of a third update, off policy and against a reference; and everything that it reports."""
    trainer = trainer_of(model, place, shard, exact=True, learning_rate=1.0, max_grad_norm=1e9)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    trainer.policy_update(batch_with())
    trainer.refresh_reference()
    trainer.policy_update(batch_with(2))
    batch = trainer.with_old_logprobs(batch_with())
    before = flat(trainer)
    metrics = trainer.policy_update(batch)
    found = {"gradient": before - flat(trainer), "metrics": metrics, "logprobs": trainer.logprobs(batch)}
    clipped = trainer_of(model, place, shard, exact=True, learning_rate=1.0, max_grad_norm=0.01)
    clipped.optimizer = torch.optim.SGD(clipped.model.parameters())
    before = flat(clipped)
    clipped.policy_update(batch_with())
    return {**found, "clipped": (before - flat(clipped)).norm().item()}


def ten_updates(model: Path, place: RankPlace, shard: str) -> dict[str, Any]:
    trainer = trainer_of(model, place, shard, learning_rate=1e-3, max_grad_norm=1.0, weight_decay=0.1)
    before = flat(trainer)
    for _ in range(10):
        trainer.policy_update(batch_with())
    exported = trainer.export_weights(3)
    return {"moved": flat(trainer) - before, "exported": None if exported is None else unpack_weights(exported)}


def of_adapters(model: Path, place: RankPlace, shard: str, folder: Path) -> dict[str, Any]:
    trainer = trainer_of(model, place, shard, learning_rate=0.01, lora=Lora(rank=4))
    for _ in range(3):
        metrics = trainer.policy_update(batch_with())
    trainer.save(folder / f"{shard}-{place.size}" / "model")
    return {"weights": flat(trainer), "kl": metrics["loss/kl"]}


def refused(model: Path, place: RankPlace, shard: str) -> dict[str, Any]:
    trainer = trainer_of(model, place, shard, learning_rate=1e-3)
    before = flat(trainer)
    with pytest.raises(TrainingError, match="engine and trainer disagree"):
        trainer.policy_update(batch_with(), max_logprob_gap=0.01)
    skipped = trainer.policy_update(replace(batch_with(), advantages=np.full(9, np.inf)))["train/skipped_updates"]
    return {"unmoved": torch.equal(before, flat(trainer)), "skipped": skipped}


def everything(models: tuple[Path, Path], place: RankPlace, folder: Path) -> dict[str, Any]:
    qwen2, llama = models
    found: dict[str, Any] = {}
    for shard in SHARDS if place.size > 1 else SHARDS[:1]:
        found[shard] = {
            "tied": gradient(qwen2, place, shard),
            "untied": gradient(llama, place, shard),
            "ten": ten_updates(qwen2, place, shard),
            "adapters": of_adapters(qwen2, place, shard, folder),
            "refused": refused(qwen2, place, shard),
        }
    return found


def one_of_two(rank: int, models: tuple[Path, Path], folder: Path) -> None:
    torch.save(everything(models, RankPlace(rank, 2, f"file://{folder}/meeting"), folder), folder / f"rank-{rank}.pt")


@pytest.fixture(scope="module")
def alone(tiny_qwen2: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything((tiny_qwen2, tiny_llama), RankPlace(), tmp_path_factory.mktemp("alone"))["none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def both(tiny_qwen2: Path, tiny_llama: Path, folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    torch.multiprocessing.spawn(one_of_two, ((tiny_qwen2, tiny_llama), folder), nprocs=2)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("model", ["tied", "untied"])
def test_two_ranks_make_the_gradient_of_one(alone: dict[str, Any], both: list[dict[str, Any]], shard: str, model: str) -> None:
    expected = alone[model]
    for rank in both:
        found = rank[shard][model]
        assert (found["gradient"] - expected["gradient"]).norm() <= 1e-10 * expected["gradient"].norm()
        assert found["clipped"] == pytest.approx(expected["clipped"], rel=1e-9)  # the norm is that of all shards together
        np.testing.assert_allclose(found["logprobs"], expected["logprobs"], rtol=1e-10)
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-9, abs=1e-12)
    assert expected["clipped"] == pytest.approx(0.01, rel=1e-5)  # torch adds 1e-6 to the norm
    assert expected["metrics"]["loss/kl"] > 0 and expected["metrics"]["rollout/logprob_gap"] > 0.1


@pytest.mark.parametrize("shard", SHARDS)
def test_ten_updates_in_float32_stay_together(alone: dict[str, Any], both: list[dict[str, Any]], shard: str) -> None:
    expected, (first, second) = alone["ten"], (rank[shard]["ten"] for rank in both)
    assert (first["moved"] - expected["moved"]).norm() <= 1e-3 * expected["moved"].norm()
    assert torch.equal(first["moved"], second["moved"])


@pytest.mark.parametrize("shard", SHARDS)
def test_the_first_rank_hands_out_whole_weights(alone: dict[str, Any], both: list[dict[str, Any]], shard: str) -> None:
    first, second = (rank[shard]["ten"]["exported"] for rank in both)
    assert second is None
    assert {name: tuple(w.shape) for name, w in first.items()} == {name: tuple(w.shape) for name, w in alone["ten"]["exported"].items()}
    assert all(weight.isfinite().all() and weight.dtype == torch.bfloat16 for weight in first.values())


@pytest.mark.parametrize("shard", SHARDS)
def test_adapters_are_shared_out_and_saved_too(alone: dict[str, Any], both: list[dict[str, Any]], folder: Path, shard: str) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    expected = alone["adapters"]
    for rank in both:
        torch.testing.assert_close(rank[shard]["adapters"]["weights"], expected["weights"], rtol=1e-4, atol=1e-5)
        assert rank[shard]["adapters"]["kl"] == pytest.approx(expected["kl"], rel=1e-3) and expected["kl"] > 1e-4
    saved = AutoModelForCausalLM.from_pretrained(folder / f"{shard}-2" / "model")
    assert saved.config.architectures == ["Qwen2ForCausalLM"] and saved.dtype == torch.bfloat16
    adapter = load_file(folder / f"{shard}-2" / "adapter" / "adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)


@pytest.mark.parametrize("shard", SHARDS)
def test_ranks_refuse_and_skip_together(both: list[dict[str, Any]], shard: str) -> None:
    assert [rank[shard]["refused"] for rank in both] == [{"unmoved": True, "skipped": 1.0}] * 2


def test_every_sample_is_in_one_share_and_all_have_equally_many_passes() -> None:
    for ranks in (1, 2, 3, 5):
        shares = [pack(batch_with(), 40, rank, ranks) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        seen = [(b, t) for share in shares for p in share for b, t in zip(p.sample.tolist(), p.column.tolist(), strict=True)]
        assert sorted(seen) == sorted(map(tuple, np.argwhere(batch_with().loss_mask).tolist()))


def test_one_large_group_is_split_between_ranks() -> None:
    # A prompt of 2 and eight completions of 10: 82 tokens, so two ranks have the prompt and four completions each.
    batch = make_batch([[1, 2]] * 8, [[3] * 10] * 8, group=[0] * 8)
    assert [[len(p.tokens) for p in pack(batch, 1000, rank, 2)] for rank in range(2)] == [[42], [42]]
