"""With which versions was the toolkit tested? Those of constraints.txt that decide what a run computes; a test holds them equal."""

from __future__ import annotations

PYTHON = ("3.11", "3.12", "3.13")
TORCH = "2.13.0"
VLLM = "0.32.0"
TESTED = {
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "math-verify": "0.9.0",
    "numpy": "2.3.5",
    "peft": "0.21.2",
    "pydantic": "2.14.3",
    "ray": "2.60.0",
    "reasoning-gym": "0.1.25",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.3",
    "transformers": "5.19.0",
}
