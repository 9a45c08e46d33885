"""What is there to run on? What the recipe's ``hardware:`` says, and this machine for what it leaves open."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from grpo.config import Recipe
from grpo.trainer.machine import GIB, Machine, host_bytes
from grpo.util.cores import num_cores


@dataclass(frozen=True)
class Site:
    """Sizes in bytes. ``machine`` is a device and how many there are in all; ``host_bytes`` and ``cpus`` are of one node."""

    machine: Machine
    nodes: int
    cpus: int
    host_bytes: int
    disk_bytes: int
    is_stated: bool

    @property
    def gpus_of_a_node(self) -> int:
        return self.machine.num_gpus // self.nodes

    @property
    def device_name(self) -> str:
        return "GPU" if self.machine.num_gpus else "machine"

    def in_words(self) -> str:
        host = f"{self.cpus} CPU core{'s' if self.cpus > 1 else ''}, {self.host_bytes / GIB:.0f} GiB of memory"
        gpus = f"{self.gpus_of_a_node} GPUs of {self.machine.device_bytes / GIB:.0f} GiB, " if self.machine.num_gpus else "no GPU, "
        nodes = f"{self.nodes} nodes, each: " if self.nodes > 1 else ""
        return f"{nodes}{gpus}{host} ({'as the recipe says' if self.is_stated else 'this machine'})"


def site_of(recipe: Recipe, out: Path) -> Site:
    """``out``: the run's folder, there already or not, whose disk counts."""
    stated = recipe.hardware
    host = int(stated.memory_gib * GIB) if stated.memory_gib else host_bytes()
    gpus, gpu_bytes = (stated.gpus, int((stated.gpu_memory_gib or 0) * GIB)) if stated.gpus is not None else _gpus_here()
    return Site(
        machine=Machine(gpu_bytes if gpus else host, stated.nodes * gpus),
        nodes=stated.nodes,
        cpus=stated.cpus or num_cores(),
        host_bytes=host,
        disk_bytes=int(stated.disk_gib * GIB) if stated.disk_gib else _free_disk(out),
        is_stated=bool(stated.model_fields_set),
    )


def _gpus_here() -> tuple[int, int]:
    """How many, and the bytes of the smallest, as the driver's own tool says: torch would take seconds to load."""
    if shutil.which("nvidia-smi") is None:
        return 0, 0
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answered = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    mebibytes = [int(line) for line in answered.stdout.split() if line.isdigit()]
    return len(mebibytes), min(mebibytes, default=0) * 2**20


def _free_disk(folder: Path) -> int:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(there).free
