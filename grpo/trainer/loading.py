"""Do a folder's tensors belong to its model, every one of them? transformers fills what is missing with random numbers and goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from grpo.errors import TrainingError
from grpo.trainer.attention import unmade
from grpo.util.model_folder import names, stored_tensors, weight_files


def tensor_problems(folder: Path) -> list[str]:
    """A line for each way in which the tensors of ``folder`` are not those of its config.json. No weights are read.

    ``folder`` is one of which grpo.util.model_folder finds nothing wrong.
    """
    try:
        with _quiet():
            _, found = AutoModelForCausalLM.from_pretrained(
                folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True
            )
    except Exception as error:
        return _unloadable(folder, error)
    return mismatches(found)


def mismatches(found: Mapping[str, Any]) -> list[str]:
    """What transformers' loading info reports, in words."""
    problems = []
    if missing := sorted(found["missing_keys"]):
        problems.append(f"the weights lack {names(missing)}, which would be random; copy or download the model again")
    if unexpected := sorted(found["unexpected_keys"]):
        problems.append(
            f"the weights hold {names(unexpected)}, which the model of config.json does not have; take the config.json that belongs to them"
        )
    if other := sorted(found["mismatched_keys"]):
        told = [f"{name} {list(stored)} instead of {list(expected)}" for name, stored, expected in other]
        problems.append(f"weights have other shapes than config.json says: {names(told)}; take the config.json that belongs to them")
    return problems


def loaded(folder: Path, **settings: Any) -> PreTrainedModel:
    """The model of ``folder``, with every weight from there. Raises TrainingError naming those that are not."""
    try:
        model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **settings)
    except KeyError as error:
        raise unmade(AutoConfig.from_pretrained(folder).model_type, error) from error
    if problems := mismatches(found):
        raise TrainingError(f"{folder} is not the whole model: {'; '.join(problems)}")
    return model


def _unloadable(folder: Path, error: Exception) -> list[str]:
    """What transformers will not load: by the names that a checkpoint would have and this one lacks, else in its own words."""
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        expected = {name for key, weight in empty.state_dict().items() for name in revert_weight_conversion(empty, {key: weight})}
        expected -= {key for key in getattr(empty, "all_tied_weights_keys", None) or ()}
        held = {tensor.name for file in weight_files(folder) for tensor in stored_tensors(file)}
        found = {"missing_keys": expected - held, "unexpected_keys": held - expected, "mismatched_keys": ()}
        if problems := mismatches(found):
            return problems
    except Exception as second:
        error = second
    first = next(iter(str(error).splitlines()), "").split(". ")[0] or type(error).__name__
    return [f"transformers cannot make its model: {first[:200].rstrip('.')}; take another model, or a transformers that knows it"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of what did not fit: it is told here, by name."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
