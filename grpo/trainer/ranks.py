"""How do several processes make one update? Each computes a share of the batch, and what they hold in common is summed or sharded.

    shard         what a rank holds whole                     known as
    none          parameters, gradients, optimizer            data parallel (ZeRO stage 0)
    gradients     parameters, from forward to backward        ZeRO stage 2: gradients and optimizer are sharded
    parameters    one layer's parameters at a time            ZeRO stage 3: all three are sharded

Token weights belong to the whole optimizer batch, so gradients are summed, never averaged. Sharding is torch's fully_shard.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from grpo.config import Shard


@dataclass(frozen=True)
class RankPlace:
    """Which rank this is, of how many, and where they meet ("tcp://host:port"; None where there is one)."""

    rank: int = 0
    size: int = 1
    meeting: str | None = None


ALONE = RankPlace()


class Ranks:
    """The ranks as one of them sees them. With a size of 1 every sum is its argument."""

    def __init__(self, place: RankPlace, shard: Shard, device: torch.device):
        self.rank, self.size, self.shard, self.device = place.rank, place.size, shard, device
        if self.size > 1:
            if place.meeting is not None and place.meeting.startswith("tcp://127."):
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            if not dist.is_initialized():
                backend = "nccl" if device.type == "cuda" else "gloo"
                dist.init_process_group(backend, init_method=place.meeting, rank=self.rank, world_size=self.size)
            self._mesh = init_device_mesh(device.type, (self.size,))

    @property
    def is_sharded(self) -> bool:
        return self.size > 1 and self.shard != "none"

    def distribute(self, model: PreTrainedModel, score: str, *, rounded: bool, keeps_layers: bool = True) -> None:
        """Shard ``model`` in place where that is asked for. ``score`` names the method that stands for its forward pass.

        ``rounded`` gathers layers in bfloat16, in which their products are made anyway; embeddings and output layer stay in float32, and so
        does what runs between layers. ``keeps_layers`` false gives a layer's parameters back after its forward pass whatever the setting.
        """
        if not self.is_sharded:
            return
        dtype = torch.bfloat16 if rounded else None
        of_layers = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if rounded else None, cast_forward_inputs=False)
        settings: dict[str, Any] = {"mesh": self._mesh, "reshard_after_forward": self.shard == "parameters" or not keeps_layers}
        for layer in model.base_model.layers:
            fully_shard(layer, mp_policy=of_layers, **settings)
        fully_shard(model, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), **settings)
        register_fsdp_forward_method(model, score)
        for module in _sharded_modules(model):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other

    def release(self, model: PreTrainedModel) -> None:
        """Give gathered parameters back after a forward pass that no backward pass follows."""
        for module in _sharded_modules(model):
            module.reshard()

    def sum_gradients(self, model: PreTrainedModel) -> None:
        """Every rank has the sum of all ranks' gradients; sharded ones were summed on the way back."""
        if self.size == 1 or self.is_sharded:
            return
        for parameter in model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Element by element over all ranks, in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        return float(self._reduced(np.array([value]), dist.ReduceOp.MAX)[0])

    def _reduced(self, values: np.ndarray, how: Any) -> np.ndarray:
        if self.size == 1:
            return values
        total = torch.from_numpy(values.astype(np.float64)).to(self.device)
        dist.all_reduce(total, how)
        return total.cpu().numpy()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor where ``tensor`` is one rank's shard of it. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_modules(model: torch.nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
