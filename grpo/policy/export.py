"""Which weights are handed out, and under which names? An ordinary checkpoint's: adapters folded in, experts apart, ties once, shards whole."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from grpo.policy.ranks import whole
from grpo.storage import check_room


@torch.no_grad()
def checkpoint_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and weights as a checkpoint has them, one at a time, so that no second copy of a model is ever held.

    W + (alpha / rank) B A where a layer has an adapter. transformers fuses the experts of a layer in memory; checkpoints have them apart.
    A shard is gathered, so every rank must go through all of them.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    seen: set[int] = set()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if ".lora_" in name or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        weight = parameter.detach() if layer is None else parameter + layer.get_delta_weight("default")
        yield from revert_weight_conversion(model, {name.replace(".base_layer.", "."): whole(weight)}).items()


def write_folder(weights: Iterable[tuple[str, Tensor]], model: PreTrainedModel, tokenizer: Path, folder: Path) -> None:
    """An ordinary Hugging Face folder: bfloat16 safetensors, the config of ``model``, the tokenizer of the folder ``tokenizer``.

    Raises StorageError where there is no room for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rounded = {name: weight.to("cpu", torch.bfloat16, copy=True).contiguous() for name, weight in weights}
    check_room(folder, sum(weight.nbytes for weight in rounded.values()))
    save_torch_state_dict(rounded, folder, metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    config.dtype = torch.bfloat16
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
