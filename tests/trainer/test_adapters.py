"""Adapters: only they learn, the weights below them are the reference, and what is handed out is ordinary weights with them folded in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo.algorithm import GRPO
from grpo.config import Lora
from grpo.errors import TrainingError
from grpo.trainer.adapters import FoldedProduct
from grpo.trainer.batch import Batch, make_batch
from grpo.trainer.export import checkpoint_weights
from grpo.trainer.policy_trainer import PolicyTrainer
from rollout.weight_sync.weights import unpack_weights

MakeTrainer = Callable[..., PolicyTrainer]


def batch() -> Batch:
    prompts, completions = [(5, 6, 7)] * 2, [(11, 12, 13), (14, 15)]
    return make_batch(prompts, completions, group=[0, 0], advantages=[1.0, -1.0]).with_weights("sequence_mean", 8)


@pytest.fixture
def trained(make_trainer: MakeTrainer) -> PolicyTrainer:
    trainer = make_trainer(replace(GRPO, kl_coef=0.1), learning_rate=0.05, lora=Lora(rank=4, targets=["q_proj", "down_proj"]))
    for _ in range(3):
        trainer.policy_update(batch())
    return trainer


def test_only_the_adapters_learn(trained: PolicyTrainer, make_trainer: MakeTrainer) -> None:
    base = dict(make_trainer().model.named_parameters())
    num_layers = trained.model.config.num_hidden_layers
    learning = [name for name, parameter in trained.model.named_parameters() if parameter.requires_grad]
    assert len(learning) == num_layers * 2 * 2 and all(".lora_" in name for name in learning)
    for name, parameter in trained.model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name
    assert all(dict(trained.model.named_parameters())[name].abs().max() > 0 for name in learning if "lora_B" in name)


def test_adapters_begin_alike_under_one_seed(make_trainer: MakeTrainer) -> None:
    one, other = (dict(make_trainer(exact=False, lora=Lora()).model.named_parameters()) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_reference_is_the_base_without_a_copy(trained: PolicyTrainer, make_trainer: MakeTrainer) -> None:
    assert trained.reference is None
    of_base = make_trainer().logprobs(batch())
    np.testing.assert_allclose(trained.logprobs(batch(), of_reference=True), of_base, rtol=1e-10)
    assert np.nanmax(np.abs(trained.logprobs(batch()) - of_base)) > 0.05
    assert trained.policy_update(batch())["loss/kl"] > 1e-4


def test_exported_weights_are_those_of_an_ordinary_model_that_computes_the_same(trained: PolicyTrainer, make_trainer: MakeTrainer) -> None:
    received = unpack_weights(trained.export_weights(version=1, dtype="float64"))
    plain = make_trainer()
    names = {name for name in plain.model.state_dict() if name != "lm_head.weight" or name in received}
    assert set(received) == names
    expected = trained.logprobs(batch())
    plain.model.load_state_dict(received, strict=False)
    np.testing.assert_allclose(plain.logprobs(batch()), expected, rtol=1e-9)  # (W + B A) x against W x + B A x
    before = make_trainer().logprobs(batch())
    assert np.nanmax(np.abs(before - expected)) > 0.05, "nothing was learned, so the comparison says nothing"


def test_handing_out_weights_remembers_no_graph(trained: PolicyTrainer) -> None:
    assert not any(weight.requires_grad for _, weight in checkpoint_weights(trained.model))


def test_a_saved_model_has_the_adapters_folded_in_and_beside_it(trained: PolicyTrainer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    trained.save(tmp_path / "model")
    received = unpack_weights(trained.export_weights(version=1, dtype="bfloat16"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in received.items())
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert trained.policy_update(batch())["train/grad_norm"] > 0, "saving must not end the training"


def test_targets_that_match_nothing_are_refused_with_what_there_is(make_trainer: MakeTrainer) -> None:
    told = r"Qwen2ForCausalLM: qproj \(no such layer; did you mean 'q_proj'\?\); its linear layers are down_proj,"
    with pytest.raises(TrainingError, match=f"lora.targets match no linear layer of {told}"):
        make_trainer(exact=False, lora=Lora(targets=["qproj"]))


def test_the_output_layer_cannot_be_a_target(make_trainer: MakeTrainer) -> None:
    with pytest.raises(TrainingError, match=r"lora.targets match no linear layer of Qwen2ForCausalLM: lm_head \(the output layer\)"):
        make_trainer(exact=False, lora=Lora(targets=["lm_head"]))


@pytest.mark.parametrize("family", ["tiny_qwen2", "tiny_llama"], ids=["tied", "untied"])
def test_frozen_matrices_of_a_bfloat16_checkpoint_are_held_so_and_lose_nothing(
    family: str, request: pytest.FixtureRequest, tiny_qwen2: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from grpo.config import OptimizerKeys, Trainer
    from grpo.trainer.adapters import holds_rounded, linear_layers
    from grpo.trainer.policy_trainer import TrainerSpec

    AutoModelForCausalLM.from_pretrained(request.getfixturevalue(family), dtype=torch.bfloat16).save_pretrained(tmp_path)
    adapted, whole = (
        PolicyTrainer(TrainerSpec(tmp_path, OptimizerKeys(learning_rate=0.01, lora=lora), 10, GRPO)) for lora in (Lora(rank=4), None)
    )
    held = {layer.weight.dtype for layer in linear_layers(adapted.model) if not layer.weight.requires_grad}
    assert held == {torch.bfloat16} and adapted.model.get_input_embeddings().weight.dtype == torch.float32
    assert adapted.model.get_output_embeddings().weight.dtype == (torch.float32 if family == "tiny_qwen2" else torch.bfloat16)
    assert {layer.weight.dtype for layer in linear_layers(whole.model)} == {torch.float32}
    np.testing.assert_array_equal(adapted.logprobs(batch()), whole.logprobs(batch()))  # B is 0 yet, and autocast rounds what is float32
    before = unpack_weights(adapted.export_weights(version=0, dtype="float32"))
    assert adapted.policy_update(batch())["train/grad_norm"] > 0
    after = unpack_weights(adapted.export_weights(version=1, dtype="float32"))
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    assert moved and all("_proj" in name for name in moved)
    config, lora = AutoConfig.from_pretrained(tmp_path), OptimizerKeys(lora=Lora())
    assert not holds_rounded(AutoConfig.from_pretrained(tiny_qwen2), lora, Trainer())
    assert not holds_rounded(config, lora, Trainer(ranks=2, shard="parameters")) and not holds_rounded(config, OptimizerKeys(), Trainer())


def test_the_trainer_computes_with_what_an_engine_holds(tiny_qwen2: Path, tmp_path: Path) -> None:
    """Folded into bfloat16, changes below a weight's last digit are rounded away; the trainer's own log-probabilities show it too."""
    from transformers import AutoModelForCausalLM

    from grpo.config import OptimizerKeys
    from grpo.trainer.policy_trainer import TrainerSpec

    AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.bfloat16).save_pretrained(tmp_path)
    adapted, whole = (PolicyTrainer(TrainerSpec(tmp_path, OptimizerKeys(lora=lora), 10, GRPO)) for lora in (Lora(rank=4), None))
    begun = adapted.logprobs(batch())
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.003)
    engine = unpack_weights(adapted.export_weights(version=1, dtype="bfloat16"))
    whole.model.load_state_dict({name: weight.float() for name, weight in engine.items()}, strict=False)
    np.testing.assert_array_equal(adapted.logprobs(batch()), whole.logprobs(batch()))
    assert np.nanmax(np.abs(adapted.logprobs(batch()) - begun)) > 0.001, "nothing was changed, so the comparison says nothing"


def test_a_folded_product_has_the_gradient_of_its_parts() -> None:
    torch.manual_seed(0)
    x, weight, a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5, 4), (3, 4), (2, 4), (3, 2)))
    apart = x @ weight.detach().T + 0.5 * (x @ a.T) @ b.T
    expected = torch.autograd.grad(apart.square().sum(), (x, a, b))
    together = FoldedProduct.apply(x, weight.detach(), None, a, b, 0.5)
    torch.testing.assert_close(together, apart)
    for found, known in zip(torch.autograd.grad(together.square().sum(), (x, a, b)), expected, strict=True):
        torch.testing.assert_close(found, known)
