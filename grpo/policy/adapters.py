"""How are low-rank adapters put on a model, and kept beside it? peft does the work; which layers are meant is our part."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PretrainedConfig, PreTrainedModel

from grpo.config import Lora, Optimiser, Trainer
from grpo.errors import TrainingError
from grpo.policy.ranks import whole


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


def holds_rounded(config: PretrainedConfig, optimiser: Optimiser, layout: Trainer) -> bool:
    """May the layers' frozen matrices be held in bfloat16? Where their checkpoint has them so, and products are made so: nothing is lost.

    What is sharded stays in float32, because torch's fully_shard wants one type in a layer.
    """
    products = layout.precision == "bfloat16" and (layout.ranks == 1 or layout.shard == "none")
    return optimiser.lora is not None and products and config.get_text_config().dtype == torch.bfloat16


def linear_layers(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """Of the layers, so neither the embeddings nor the output layer."""
    return [module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)]


def round_frozen(model: PreTrainedModel) -> None:
    """The layers' frozen matrices in bfloat16, in place."""
    for layer in linear_layers(model):
        if not layer.weight.requires_grad:
            layer.to(torch.bfloat16)


def save_adapters(adapted: PeftModel, folder: Path, is_first_rank: bool) -> None:
    """The adapters alone, in peft's own format. Shards are gathered, so every rank must ask."""
    weights = {name: whole(weight) for name, weight in adapted.state_dict().items() if ".lora_" in name}
    if is_first_rank:
        adapted.save_pretrained(folder, state_dict=weights)
