"""2N updates, and N, saved, loaded into another trainer, and N more, give the same bits: weights, moments, reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from grpo.algorithm import GRPO
from grpo.config import Lora
from grpo.errors import CheckpointError, StorageError
from grpo.trainer import state
from grpo.trainer.policy_trainer import PolicyTrainer
from grpo.trainer.ranks import RankPlace
from grpo.trainer.state import tensors_of
from tests.trainer.conftest import MakeTrainer
from tests.trainer.test_ranks import batch_with, trainer_of

OPTIMIZER: dict[str, Any] = dict(learning_rate=1e-2, warmup_updates=3, lr_schedule="cosine", weight_decay=0.1)


def update(trainer: PolicyTrainer, times: int) -> list[dict[str, float]]:
    return [trainer.policy_update(batch_with(2)) for _ in range(times)]


def bits(trainer: PolicyTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors_of(trainer.model, trainer.optimizer, trainer.reference)}


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["all", "lora"])
@pytest.mark.parametrize("refresh", [False, True], ids=["first-reference", "refreshed"])
def test_resumed_training_is_undisturbed_training(tmp_path: Path, make_trainer: MakeTrainer, lora: Lora | None, refresh: bool) -> None:
    def make() -> PolicyTrainer:
        return make_trainer(replace(GRPO, kl_coef=0.1), exact=False, lora=lora, **OPTIMIZER)

    undisturbed, first = make(), make()
    for trainer in (undisturbed, first):
        update(trainer, 2)
        if refresh:
            trainer.refresh_reference()
        update(trainer, 1)
    numbers = first.save_state(tmp_path)
    resumed = make()
    resumed.load_state(tmp_path, numbers)
    assert resumed.num_updates == 3
    assert update(resumed, 3) == update(undisturbed, 3)
    assert_same_bits(bits(resumed), bits(undisturbed))


def test_before_the_first_update_there_are_no_moments_and_the_reference_is_not_kept(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(replace(GRPO, kl_coef=0.1), exact=False)
    numbers = trainer.save_state(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "trainer-0.safetensors", "pt") as file:
        assert {name.partition("/")[0] for name in file.keys()} == {"policy"}  # noqa: SIM118 - no mapping
    resumed = make_trainer(replace(GRPO, kl_coef=0.1), exact=False)
    resumed.load_state(tmp_path, numbers)
    assert resumed.num_updates == 0


def test_a_large_state_is_written_in_pieces(tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "FILE_BYTES", 50_000)
    trainer = make_trainer(exact=False, **OPTIMIZER)
    update(trainer, 2)
    numbers = trainer.save_state(tmp_path)
    assert len(list(tmp_path.glob("trainer-*.safetensors"))) > 10
    resumed = make_trainer(exact=False, **OPTIMIZER)
    resumed.load_state(tmp_path, numbers)
    assert_same_bits(bits(resumed), bits(trainer))


def test_the_state_of_another_trainer_is_refused(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    numbers = make_trainer(exact=False, lora=Lora(rank=2)).save_state(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds the state of another trainer: \d+ tensors are missing and \d+ unknown"):
        make_trainer(exact=False).load_state(tmp_path, numbers)


def test_too_little_room_is_said_before_anything_is_written(
    tmp_path: Path, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(StorageError, match="1,000 bytes free and"):
        make_trainer(exact=False).save_state(tmp_path)
    assert list(tmp_path.iterdir()) == []


def half_and_half(model: Path, place: RankPlace, shard: str, folder: Path) -> tuple[Any, Any]:
    undisturbed = trainer_of(model, place, shard, **OPTIMIZER)
    first = trainer_of(model, place, shard, **OPTIMIZER)
    for trainer in (undisturbed, first):
        update(trainer, 1)
        trainer.refresh_reference()
        update(trainer, 1)
    numbers = first.save_state(folder)
    if place.size > 1:
        torch.distributed.barrier()
    resumed = trainer_of(model, place, shard, **OPTIMIZER)
    resumed.load_state(folder, numbers)
    update(resumed, 2)
    update(undisturbed, 2)
    return bits(resumed), bits(undisturbed)


def _in_rank(rank: int, model: Path, shard: str, folder: Path) -> None:
    place = RankPlace(rank, 2, f"file://{folder / 'meeting'}")
    found = half_and_half(model, place, shard, folder)
    torch.save(found, folder / f"found-{rank}.pt")


@pytest.mark.parametrize("shard", ["none", "parameters"])
def test_two_ranks_go_on_to_the_bit_each_with_its_own_shard(tmp_path: Path, tiny_qwen2: Path, shard: str) -> None:
    torch.multiprocessing.spawn(_in_rank, (tiny_qwen2, shard, tmp_path), nprocs=2)
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert files == (["trainer-0.safetensors"] if shard == "none" else ["trainer-0-of-2-0.safetensors", "trainer-1-of-2-0.safetensors"])
    for rank in (0, 1):
        resumed, undisturbed = torch.load(tmp_path / f"found-{rank}.pt")
        assert_same_bits(resumed, undisturbed)
