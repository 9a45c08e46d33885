"""The machine and its own rates: matrix products, memory copies, transfers between host and GPU, kernel launches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib import metadata
from typing import Any

import torch
from common import DEVICE, DRY, GPU, WORK, attempt, median_seconds, record

PACKAGES = (
    *("accelerate", "huggingface_hub", "numpy", "peft", "protobuf", "pyarrow", "pydantic", "ray"),
    *("safetensors", "tokenizers", "transformers", "triton", "trl", "vllm"),
)
PRODUCTS = 10


def measure_rates() -> dict[str, float]:
    """Rates of this machine, which are also kept in WORK/rates.json for the checks that compare with them."""
    rates = {"matmul_tflops": product_rate() / 1e12, "copy_gb_s": copy_rate() / 1e9}
    if GPU:
        rates |= transfer_rates() | launch_times()
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "rates.json").write_text(json.dumps(rates))
    return rates


def product_rate() -> float:
    """FLOP/s of square bfloat16 matrix products."""
    size = 512 if DRY else 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    return PRODUCTS * 2 * size**3 / median_seconds(lambda: [a @ b for _ in range(PRODUCTS)])


def copy_rate() -> float:
    """Bytes read and written per second by a copy within the device's memory."""
    block = torch.empty(2**20 if DRY else 2**30, dtype=torch.float32, device=DEVICE)
    other = torch.empty_like(block)
    return 2 * block.nbytes / median_seconds(lambda: other.copy_(block))


def transfer_rates() -> dict[str, float]:
    """GB/s between host and GPU, with pageable and with pinned host memory. A sleeping trainer or engine moves its weights this way."""
    host = torch.ones(2**28, dtype=torch.float32)
    pinned = host.pin_memory()
    on_gpu = torch.empty(2**28, dtype=torch.float32, device=DEVICE)
    ways = {
        "h2d_pageable_gb_s": lambda: on_gpu.copy_(host),
        "d2h_pageable_gb_s": lambda: host.copy_(on_gpu),
        "d2h_new_memory_gb_s": lambda: on_gpu.to("cpu"),
        "h2d_pinned_gb_s": lambda: on_gpu.copy_(pinned, non_blocking=True),
        "d2h_pinned_gb_s": lambda: pinned.copy_(on_gpu, non_blocking=True),
    }
    return {name: host.nbytes / median_seconds(way, rounds=2) / 1e9 for name, way in ways.items()}


def launch_times() -> dict[str, float]:
    """Microseconds of one kernel launch, and of one ``.item()``, which waits for the GPU."""
    small = torch.zeros(16, device=DEVICE)
    launches = median_seconds(lambda: [small.add_(1) for _ in range(1000)])
    items = median_seconds(lambda: [small.sum().item() for _ in range(100)])
    return {"launch_us": launches * 1e3, "item_us": items * 1e4}


def machine() -> dict[str, Any]:
    facts = {"cores": os.cpu_count(), "shm_gib": shutil.disk_usage("/dev/shm").total / 2**30, "torch": torch.__version__}
    if GPU:
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        facts |= {"gpu": properties.name, "gib": total / 2**30, "free_gib": free / 2**30, "sms": properties.multi_processor_count}
        facts["driver_clocks_power"] = attempt("nvidia-smi", driver_and_clocks)
    return facts


def driver_and_clocks() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.draw", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main() -> int:
    record("machine", **machine(), versions={package: version_of(package) for package in PACKAGES})
    rates = attempt("rates", measure_rates)
    if rates is None:
        return 1
    record("rates", **rates)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
