"""Which weights are handed out, and under which names? An ordinary checkpoint's: adapters folded in, experts apart, ties once, shards whole."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from grpo.trainer.ranks import whole
from grpo.util.model_folder import CONFIG, GENERATION
from grpo.util.storage import check_room


@torch.no_grad()
def checkpoint_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and weights as a checkpoint has them, one at a time, so that no second copy of a model is ever held.

    transformers fuses the experts of a layer in memory; checkpoints have them apart. What is tied is given once.
    A shard is gathered, so every rank must go through all of them.
    """
    seen: set[int] = set()
    for name, parameter, weight in _computed(model):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield from revert_weight_conversion(model, {name: weight()}).items()


@torch.no_grad()
def computed_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The same under their names in memory, and what is tied under each of them: what the model computes with."""
    for name, _, weight in _computed(model):
        yield name, weight()


def _computed(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, Callable[[], Tensor]]]:
    """Name, what is held, and how to have it whole: W + (alpha / rank) B A where a layer has an adapter."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in model.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            continue
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        yield name.replace(".base_layer.", "."), parameter, partial(_whole, parameter, layer)


def _whole(parameter: Tensor, layer: LoraLayer | None) -> Tensor:
    return whole(parameter.detach() if layer is None else parameter + layer.get_delta_weight("default"))


def stays_float32(model: PreTrainedModel) -> Callable[[str], bool]:
    """Of a tensor's name: does transformers hold it in float32 whatever the model's type? A router's bias in bfloat16 chooses other experts."""
    parts = [f".{part}." for part in getattr(model, "_keep_in_fp32_modules_strict", None) or ()]
    return lambda name: any(part in f".{name}." for part in parts)


def write_folder(weights: Iterable[tuple[str, Tensor]], model: PreTrainedModel, start: Path, folder: Path) -> None:
    """An ordinary Hugging Face folder: bfloat16 safetensors, the config of ``model``, generation settings and tokenizer of ``start``.

    Settings are written as they were: transformers' own way refuses some that it loads, after all training is done.
    Raises StorageError where there is no room for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exact = stays_float32(model)
    rounded = {name: weight.to("cpu", torch.float32 if exact(name) else torch.bfloat16, copy=True).contiguous() for name, weight in weights}
    check_room(folder, sum(weight.nbytes for weight in rounded.values()))
    save_torch_state_dict(rounded, folder, metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    config.dtype = torch.bfloat16
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.to_json_file(folder / CONFIG)
    if (start / GENERATION).is_file():
        if start != folder:  # a tiny model is saved where its training started
            shutil.copyfile(start / GENERATION, folder / GENERATION)
    elif model.generation_config is not None:
        model.generation_config.to_json_file(folder / GENERATION)
    AutoTokenizer.from_pretrained(start).save_pretrained(folder)
