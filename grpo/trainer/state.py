"""What does a trainer write down, so that another one goes on as if nothing had happened? Exactly what its updates change.

Weights that are trained (float32 masters, or adapters), both moments and the count of the optimizer, and the reference where it is no longer the
model that training started from. Learning rates follow from the number of updates, and nothing is drawn at random while training, so there is no
other state. Sharded ranks write their own shards; ranks that hold everything leave it to the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from grpo.errors import CheckpointError, StorageError
from grpo.util.storage import check_room, storage_error

FILE_BYTES = 2**30  # a file is gathered in memory before it is written
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def tensors_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, reference: torch.nn.Module | None) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all that is kept: this rank's part of it, not copied. The optimizer's are there once it has stepped."""
    for name, parameter in _trained(model):
        yield f"policy/{name}", _local(parameter)
        for moment, value in optimizer.state[parameter].items():
            yield f"{moment}/{name}", _local(value)
    if reference is not None:
        for name, parameter in reference.named_parameters():
            yield f"reference/{name}", _local(parameter)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, part: str) -> None:
    """Into ``folder``, in files of about FILE_BYTES called ``part``-0.safetensors, ... Raises StorageError where there is no room."""
    check_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
    try:
        for number, names in enumerate(_files(tensors)):
            save_file({name: tensors[name].detach().cpu().contiguous() for name in names}, folder / f"{part}-{number}.safetensors")
    except OSError as error:
        raise storage_error(folder, error) from error
    except Exception as error:  # safetensors' own, which hides the system's inside its text
        raise StorageError(f"the checkpoint could not be written to {folder.parent}: {error}; earlier checkpoints are untouched") from error


@torch.no_grad()
def read_tensors(
    folder: Path, part: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer, reference: torch.nn.Module | None
) -> None:
    """Put back what ``write_tensors`` wrote, into a trainer made from the same recipe. Raises CheckpointError naming what does not fit."""
    kept = {name: tensor for file in sorted(folder.glob(f"{part}-*.safetensors")) for name, tensor in load_file(file).items()}
    expected = {f"policy/{name}" for name, _ in _trained(model)}
    found = {name for name in kept if name.startswith("policy/")}
    if expected != found:
        raise CheckpointError(
            f"{folder} holds the state of another trainer: {len(expected - found)} tensors are missing and {len(found - expected)} unknown, the "
            f"first being {min(expected ^ found).removeprefix('policy/')}; it was made with other ranks, adapters or another model"
        )
    for name, parameter in _trained(model):
        _local(parameter).copy_(kept.pop(f"policy/{name}"))
        state = {moment: kept.pop(f"{moment}/{name}") for moment in MOMENTS if f"{moment}/{name}" in kept}
        if state:
            optimizer.state[parameter] = {moment: _placed_like(parameter, value, moment) for moment, value in state.items()}
    if reference is not None:
        for name, parameter in reference.named_parameters():
            if f"reference/{name}" in kept:
                _local(parameter).copy_(kept.pop(f"reference/{name}"))


def _trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _placed_like(parameter: Tensor, value: Tensor, moment: str) -> Tensor:
    """A moment lies where its parameter does; the count of steps is a scalar of its own."""
    if moment == "step":
        return value.to(parameter.device)
    placed = torch.zeros_like(parameter)
    _local(placed).copy_(value)
    return placed


def _files(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    names: list[str] = []
    num_bytes = 0
    for name, tensor in tensors.items():
        if names and num_bytes + tensor.nbytes > FILE_BYTES:
            yield names
            names, num_bytes = [], 0
        names.append(name)
        num_bytes += tensor.nbytes
    if names:
        yield names
