"""How are low-rank adapters put on a model, and kept beside it? peft does the work; which layers are meant is our part, and how they compute.

An engine holds W + s B A in bfloat16, whose last digit is larger than most of what adapters change: SmolLM2 after 30 updates had changed its matrices
by 0.1%, and a fifth of what it had learned was rounded away. A trainer that computes W x + s B (A x) optimises a policy that nobody samples. So here,
too, the sum is rounded before the product, as weights are that are trained whole, and the gradient passes the rounding by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from grpo.config import Lora, OptimizerKeys, Trainer
from grpo.errors import TrainingError
from grpo.trainer.ranks import whole
from grpo.util.text import did_you_mean

LINEAR = (torch.nn.Linear, Conv1D)  # the latter is GPT-2's, with its weight the other way round
OF_EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def add_adapters(model: PreTrainedModel, settings: Lora, seed: int) -> PeftModel:
    """Adapters on the linear layers that ``settings`` names, in place; everything else is frozen. B starts at 0, so nothing changes
    yet, and A follows from ``seed``. Fused experts, routers, embeddings and the output layer get none: folded in, they would be another model.

    Raises TrainingError naming each target that is no such layer.
    """
    layers = _targeted(model, settings.targets)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=layers, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    before = model.state_dict().keys()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    after = {name.replace(".base_layer.", ".") for name in model.state_dict() if ".lora_" not in name}
    assert after == before, f"adapters changed names of weights: {sorted(after ^ before)[:3]}"
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.base_layer, LINEAR):
            layer.forward = MethodType(_folded_forward, layer)
    return adapted


def _targeted(model: PreTrainedModel, targets: Sequence[str] | str) -> list[str]:
    """Full names of the layers that ``targets`` mean."""
    head, modules = model.get_output_embeddings(), dict(model.named_modules())
    is_wanted = lambda name: modules[name] is not head and not _is_router(name, modules) and not _is_moved(name, modules)  # noqa: E731
    linear = [name for name, module in modules.items() if isinstance(module, LINEAR) and is_wanted(name)]
    if isinstance(targets, str):
        return linear
    known = sorted({name.rpartition(".")[2] for name in linear})
    if wrong := [target for target in targets if not any(_is_meant(target, name) for name in linear)]:
        told = ", ".join(f"{target} ({_what_it_is(target, modules, head, known)})" for target in wrong)
        raise TrainingError(
            f"lora.targets match no linear layer of {type(model).__name__}: {told}; its linear layers are {', '.join(known)}"
        )
    return [name for name in linear if any(_is_meant(target, name) for target in targets)]


def _is_meant(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _is_router(name: str, modules: Mapping[str, torch.nn.Module]) -> bool:
    """It stands beside experts, and has an output for each."""
    experts = modules.get(f"{name.rpartition('.')[0]}.experts")
    number = len(experts) if isinstance(experts, torch.nn.ModuleList) else getattr(experts, "num_experts", None)
    return number is not None and getattr(modules[name], "out_features", None) == number


def _is_moved(name: str, modules: Mapping[str, torch.nn.Module]) -> bool:
    """peft takes this name for that of experts, where those are fused, and puts the adapter on all of them instead, now and on loading it."""
    if name.rpartition(".")[2] not in OF_EXPERTS:
        return False
    return any(owner.endswith(".experts") and list(module.parameters(recurse=False)) for owner, module in modules.items())


def _what_it_is(target: str, modules: Mapping[str, torch.nn.Module], head: torch.nn.Module | None, known: Sequence[str]) -> str:
    hit = next((name for name in modules if _is_meant(target, name)), None)
    if hit is None:
        close = did_you_mean(target, known)
        return f"no such layer; did you mean {close!r}?" if close else "no such layer"
    if modules[hit] is head:
        return "the output layer"
    if _is_moved(hit, modules):
        return "a name that peft gives to experts, which take no adapter"
    return "a router" if _is_router(hit, modules) else f"of type {type(modules[hit]).__name__}"


def _folded_forward(layer: LoraLayer, x_BTI: Tensor) -> Tensor:
    if layer.disable_adapters:
        return layer.base_layer(x_BTI)
    kind = x_BTI.device.type
    is_cast = torch.is_autocast_enabled(kind) and x_BTI.dtype != torch.float64  # which autocast leaves alone
    dtype = torch.get_autocast_dtype(kind) if is_cast else x_BTI.dtype
    a, b, frozen = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer
    bias = None if frozen.bias is None else frozen.bias.to(dtype)
    weight_OI = frozen.weight.T if isinstance(frozen, Conv1D) else frozen.weight
    return FoldedProduct.apply(x_BTI.to(dtype), weight_OI, bias, a, b, layer.scaling["default"])


class FoldedProduct(torch.autograd.Function):
    """x (W + s B A)^T + bias, the sum rounded to x's type; A [r, I] and B [O, r] get the gradient of x W^T + s (x A^T) B^T.

    The sum is made anew on the way back, so that no second copy of the weights is held.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        with torch.autocast(x.device.type, enabled=False):
            return torch.nn.functional.linear(x, folded(weight, a, b, scaling).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        (grad,) = gradients
        with torch.autocast(x.device.type, enabled=False):
            of_x = grad @ folded(weight, a, b, ctx.scaling).to(grad.dtype)
            x_NI, grad_NO = x.flatten(0, -2), grad.flatten(0, -2)
            of_a = (grad_NO @ b.to(grad.dtype)).T @ x_NI
            of_b = grad_NO.T @ (x_NI @ a.to(x.dtype).T)
        return of_x, None, None, ctx.scaling * of_a.to(a.dtype), ctx.scaling * of_b.to(b.dtype), None


def folded(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W + s B A, of the adapters' precision."""
    return (b @ a).mul_(scaling).add_(weight)


def holds_rounded(config: PretrainedConfig, optimizer: OptimizerKeys, layout: Trainer) -> bool:
    """May frozen matrices be held in bfloat16? Where their checkpoint has them so, and products are made so: nothing is lost.

    What is sharded stays in float32, because torch's fully_shard wants one type in a layer.
    """
    products = layout.precision == "bfloat16" and (layout.ranks == 1 or layout.shard == "none")
    return optimizer.lora is not None and products and config.get_text_config().dtype == torch.bfloat16


def linear_layers(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """What is a matrix product and nothing else: an output layer that is the embeddings too is not, since those begin the residual stream."""
    layers = [module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)]
    head = model.get_output_embeddings()
    is_tied = head is None or head.weight is model.get_input_embeddings().weight
    return layers if is_tied else [*layers, head]  # type: ignore[list-item]


def round_frozen(model: PreTrainedModel) -> None:
    """Frozen matrices in bfloat16, in place."""
    for layer in linear_layers(model):
        if not layer.weight.requires_grad:
            layer.to(torch.bfloat16)


def save_adapters(adapted: PeftModel, folder: Path, is_first_rank: bool) -> None:
    """The adapters alone, in peft's own format. Shards are gathered, so every rank must ask."""
    weights = {name: whole(weight) for name, weight in adapted.state_dict().items() if ".lora_" in name}
    if is_first_rank:
        adapted.save_pretrained(folder, state_dict=weights)
