"""Every family is trained rightly, and written as it was trained; or it is refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo.algorithm import GRPO
from grpo.config import Lora, OptimizerKeys, Trainer
from grpo.errors import TrainingError
from grpo.plan.architecture import architecture_of
from grpo.plan.models import model_problems
from grpo.trainer.batch import Batch, make_batch
from grpo.trainer.layout_check import plain_logprobs
from grpo.trainer.memory_budget import check_trained, footprint
from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec
from tests.trainer.families import FAMILIES, REFUSED, TRAINED, write_family

PROMPTS, COMPLETIONS = [(5, 6, 7)] * 2 + [(8, 9)] * 2, [(11, 12, 13, 14, 15), (16, 17), (21, 22, 23), (24,)]
Folder = Callable[[str], Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices of 32 by 32 are not worth two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Folder:
    return lambda family: write_family(family, tokenizer, tmp_path_factory.mktemp(family))


def batch() -> Batch:
    known = make_batch(PROMPTS, COMPLETIONS, group=[0, 0, 1, 1], advantages=[1.0, -1.0, 1.0, -1.0])
    return known.with_weights("sequence_mean", max_tokens=8)


def trainer_of(folder: Path, **settings: object) -> PolicyTrainer:
    optimizer = OptimizerKeys(learning_rate=1e-2, **settings)  # type: ignore[arg-type]
    return PolicyTrainer(TrainerSpec(folder, optimizer, 10, GRPO, layout=Trainer(precision="float32")))


@pytest.mark.parametrize("family", TRAINED)
def test_what_is_written_is_what_was_trained(family: str, folder_of: Folder, tmp_path: Path) -> None:
    folder = folder_of(family)
    assert model_problems(folder, family) == []
    trainer, again = (trainer_of(folder, gradient_checkpointing=on) for on in (False, True))
    begun = trainer.logprobs(batch())
    np.testing.assert_array_equal(again.logprobs(batch()), begun)  # whatever dropout the family has
    told, told_again = trainer.supervised_update(batch()), again.supervised_update(batch())
    assert told_again["train/grad_norm"] == pytest.approx(told["train/grad_norm"], rel=1e-4)
    assert trainer.policy_update(batch())["train/grad_norm"] > 0
    trainer.save(tmp_path / "model")
    for weight in trainer.model.parameters():
        weight.data = weight.data.bfloat16().float()  # as they are written
    expected = trainer.logprobs(batch())
    found = plain_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32), batch())
    assert np.nanmean(np.abs(found - expected)) < 1e-3 < 0.01 < np.nanmean(np.abs(expected - begun))
    assert model_problems(tmp_path / "model", family) == []


@pytest.mark.parametrize("family", TRAINED)
def test_adapters_are_written_as_they_were_trained(family: str, folder_of: Folder, tmp_path: Path) -> None:
    trainer = trainer_of(folder_of(family), lora=Lora(rank=4))
    begun = trainer.logprobs(batch())
    for _ in range(3):
        trainer.supervised_update(batch())
    trainer.save(tmp_path / "model")
    found = plain_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32), batch())
    expected = trainer.logprobs(batch())
    assert np.nanmean(np.abs(found - expected)) < 0.1 * np.nanmean(np.abs(expected - begun))  # what bfloat16 rounds off the weights


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
@pytest.mark.parametrize("target", ["experts", "gate", "down_proj"])
def test_experts_and_routers_take_no_adapter(family: str, target: str, folder_of: Folder) -> None:
    """Folded into fused experts it would be lost, and a router's choice is not what an engine's would be."""
    config = (folder_of(family) / "config.json").read_text()
    with pytest.raises(TrainingError, match=rf"lora.targets match no linear layer of {family}ForCausalLM: {target} \("):
        check_trained(config, Lora(targets=["o_proj", target]).model_dump_json())


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_is_not_computed_is_refused_in_a_line(family: str, folder_of: Folder) -> None:
    folder = folder_of(family)
    for refuse in (lambda: check_trained((folder / "config.json").read_text(), None), lambda: trainer_of(folder)):
        with pytest.raises(TrainingError) as caught:
            refuse()
        assert REFUSED[family] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_known_under_every_familys_names(family: str, folder_of: Folder) -> None:
    """Two layers of 32 with four heads of 8, and feed-forward layers of 48, 4 x 32, or two experts of 16, whatever these are called."""
    folder = folder_of(family)
    model = architecture_of(str(folder), Path())
    config = json.loads((folder / "config.json").read_text())
    kv_heads = config.get("num_key_value_heads") or (1 if family == "Falcon" else 4)
    width = {"Qwen3Moe": 32, "DeepseekV3": 32, **dict.fromkeys(("GPT2", "Falcon", "Bloom", "GPTJ"), 128)}.get(family, 48)
    assert (model.layers, model.attention_width, model.head_dim) == (2, 32, 8)
    assert model.positions == (None if family == "Bloom" else 256)
    assert model.activation_bytes_per_token == 3 * (30 * 32 + 14 * 8 * (4 + kv_heads) + 9 * width)
    assert footprint(folder, OptimizerKeys(), Trainer(), False, "cpu").num_parameters == model.parameters > 10_000
