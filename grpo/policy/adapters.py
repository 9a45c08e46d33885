"""How are low-rank adapters put on a model, looked past, and folded into ordinary weights? peft does the work; names are our part."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from grpo.config import Lora
from grpo.errors import TrainingError


def add_adapters(model: PreTrainedModel, settings: Lora, seed: int) -> PeftModel:
    """Adapters on the linear layers that ``settings`` names, in place; everything else is frozen. B starts at 0, so nothing changes
    yet, and A follows from ``seed``.

    Raises TrainingError where no layer has such a name.
    """
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.targets, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "in_features")} - {"lm_head"})
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        raise TrainingError(
            f"lora.targets {settings.targets} match no layer of {type(model).__name__}; its linear layers are {', '.join(linear)}"
        ) from error


@torch.no_grad()
def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """All weights under the names they have without adapters: W + (alpha / rank) B A where there is one. The model is left as it is."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    weights: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        if ".lora_" in name:
            continue
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        plain = name.replace(".base_layer.", ".")
        weights[plain] = parameter if layer is None else parameter + layer.get_delta_weight("default").to(parameter.dtype)
    return weights


def save_merged(adapted: PeftModel, folder: Path) -> None:
    """An ordinary folder with the adapters folded in, and the adapters themselves beside it, in peft's own format."""
    copy.deepcopy(adapted).merge_and_unload().bfloat16().save_pretrained(folder)
    adapted.save_pretrained(folder.with_name("adapter"))
