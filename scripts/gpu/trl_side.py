"""Seconds of one GRPO step of TRL on this GPU, and of its update, to compare with a run of the toolkit of the same sizes.

    python scripts/gpu/trl_side.py MODEL_FOLDER [--prompts 16] [--samples 8] [--completion-tokens 96] [--steps 4]

bfloat16, no gradient checkpointing, KL coefficient 0, a random reward. TRL generates with transformers here (its vLLM mode needs versions of
its own), so compare updates and log-probs, not generation.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import DRY, GPU, WORK, matmul_tflops, num_parameters, record, synchronize
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

GENERATE, GENERATE_AND_SCORE = "_generate", "_generate_and_score_completions"


class StepClock(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        synchronize()
        self.ends.append(time.perf_counter())

    def median_step_s(self) -> float:
        return statistics.median(after - before for before, after in zip(self.ends, self.ends[1:], strict=False))


class RandomReward:
    """A reward of any value, so that no group has zero variance. It also notes the completions' mean length."""

    __name__ = "random_reward"

    def __init__(self) -> None:
        self.mean_lengths: list[float] = []

    def __call__(self, completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        self.mean_lengths.append(statistics.mean(map(len, completion_ids)))
        return [random.random() for _ in completions]


def time_method(owner: Any, name: str) -> list[float]:
    """Replace the method by one that measures itself; the list returned grows by the seconds of each call."""
    plain, seconds = getattr(owner, name), []

    def timed_method(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            synchronize()
            seconds.append(time.perf_counter() - started)

    setattr(owner, name, timed_method)
    return seconds


def warm_median(values: list[float]) -> float:
    """Without the first value, which warms up, where there are more."""
    return statistics.median(values[1:] or values)


def trl_settings(sizes: argparse.Namespace) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(WORK / "trl"),
        max_steps=sizes.steps + 1,
        per_device_train_batch_size=sizes.prompts * sizes.samples,
        num_generations=sizes.samples,
        max_completion_length=sizes.completion_tokens,
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        bf16=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not GPU,
    )


def measure(sizes: argparse.Namespace) -> None:
    clock, reward = StepClock(), RandomReward()
    questions = [f"Calculate {7 + i} + {5 + i}. Reply with the number only." for i in range(sizes.prompts * (sizes.steps + 1))]
    trainer = GRPOTrainer(
        model=str(sizes.folder),
        args=trl_settings(sizes),
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": question} for question in questions]),
        callbacks=[clock],
    )
    generate, rollout = time_method(trainer, GENERATE), time_method(trainer, GENERATE_AND_SCORE)
    trainer.train()
    step_s = clock.median_step_s()
    update_s = step_s - warm_median(rollout)
    tokens = sizes.prompts * sizes.samples * warm_median(reward.mean_lengths)
    tflops = 6 * num_parameters(trainer.model) * tokens / update_s / 1e12
    peak = torch.cuda.max_memory_allocated() / 2**30 if GPU else 0.0
    record(
        "trl", step_s=round(step_s, 3), generate_s=round(warm_median(generate), 3), update_s=round(update_s, 3), completion_tokens=tokens,
        update_tokens_per_s=round(tokens / update_s), update_mfu=round(tflops / matmul_tflops(), 4), peak_gib=round(peak, 1),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="per prompt")
    parser.add_argument("--completion-tokens", type=int, default=96)
    parser.add_argument("--steps", type=int, default=4, help="measured steps, after one that warms up")
    sizes = parser.parse_args()
    if DRY:
        vars(sizes).update(prompts=2, samples=2, completion_tokens=8, steps=1)
    measure(sizes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
