"""What are this machine's rates? A few updates and a few draws with random weights of the recipe's model, in processes of their own.

Two sizes of each are timed. What grows with the size gives the rates, and what does not is a pass's, or a token step's, own cost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from grpo.config import Recipe
from grpo.cores import num_cores
from grpo.errors import TrainingError
from grpo.plan.architecture import Architecture
from grpo.plan.duration import OPTIMISER_BYTES, Rates
from grpo.plan.work import Training
from grpo.policy.machine import host_bytes

ROUNDS = 3  # the best counts: whatever else the machine does only adds
PART_OF_A_PASS = 6  # the smaller of the two updates
MOST_STEPS = 48  # token steps of a draw
DEADLINE_S = 900.0


def measured_rates(recipe: Recipe, model: Architecture, prompt: int, completion: int, tokens_per_pass: int) -> Rates:
    """For updates and draws of such lengths. Raises TrainingError where the model is too large to be measured here, or a process fails."""
    needed = 24 * model.parameters
    if needed > host_bytes():
        raise TrainingError(
            f"--measure: {model.ref} would take {needed / 2**30:.0f} GiB to be measured, and this machine has {host_bytes() / 2**30:.0f}; "
            "state hardware.tflops and hardware.bandwidth_gb_s instead"
        )
    asked: dict[str, Any] = {
        "config": dict(model.config or {}),
        "rollout": recipe.rollout.model_dump(mode="json"),
        "precision": recipe.trainer.precision,
    }
    asked |= {"prompt": prompt, "completion": completion, "tokens_per_pass": max(tokens_per_pass, prompt + completion)}
    trainer = _apart("trainer", asked)
    engine = _apart("engine", asked) if recipe.rollout.engine != "scripted" else {"layer_s": 0.0, "token_s": 0.0}
    return Rates(trainer["flops_per_s"], trainer["bytes_per_s"], trainer["layer_pass_s"], engine["layer_s"], engine["token_s"], True)


def _apart(what: str, asked: dict[str, Any]) -> dict[str, Any]:
    """In a fresh process, as in a run; in a folder where no file of the user's hides a package."""
    from grpo.policy.remote import KEEP_FREED_MEMORY

    environment = {**os.environ, **(KEEP_FREED_MEMORY if what == "trainer" else {}), "OMP_NUM_THREADS": str(num_cores())}
    command = [sys.executable, "-m", "grpo.plan.measure", what]
    here = Path(__file__).parents[2]
    ran = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, env=environment, cwd=here, timeout=DEADLINE_S)
    if ran.returncode:
        raise TrainingError(f"--measure: the {what} failed: {(ran.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(ran.stdout.strip().splitlines()[-1])


# --- In the process apart -------------------------------------------------------------------------


def measure_trainer(asked: dict[str, Any], folder: Path) -> dict[str, float]:
    """Updates of a pass, and of a part of one, by the trainer itself."""
    from dataclasses import replace

    import torch

    from grpo.algorithm import GRPO
    from grpo.config import Optimiser, Trainer
    from grpo.policy.trainer import PolicyTrainer, TrainerSpec

    model = _random_model(asked["config"], folder)
    prompt, completion = asked["prompt"], asked["completion"]
    samples = max(2, (asked["tokens_per_pass"] - prompt) // completion)
    optimiser = Optimiser(learning_rate=1e-6, tokens_per_device=prompt + samples * completion)
    spec = TrainerSpec(
        folder, optimiser, 1000, replace(GRPO, kl_coef=0.0), num_threads=num_cores(), layout=Trainer(precision=asked["precision"])
    )
    trainer = PolicyTrainer(spec)
    bytes_per_s = _bytes_per_s(torch)
    optimiser_s = OPTIMISER_BYTES * model.parameters / bytes_per_s
    found = []
    for number in (samples, max(1, samples // PART_OF_A_PASS)):
        batch = _batch(number, prompt, completion, asked["config"]["vocab_size"])
        work = Training(1, 1, number, prompt, completion, 3, model)
        found.append((work.flops, _best(partial(trainer.policy_update, batch)) - optimiser_s))
    (large, large_s), (small, small_s) = found
    flops_per_s = (large - small) / max(large_s - small_s, 1e-9)
    layer_pass_s = max(0.0, small_s - small / flops_per_s) / model.layers
    return {"flops_per_s": flops_per_s, "bytes_per_s": bytes_per_s, "layer_pass_s": layer_pass_s}


def measure_engine(asked: dict[str, Any], folder: Path) -> dict[str, float]:
    """Draws of many sequences and of few, by the engine itself; token steps are what both have alike."""
    import numpy as np

    from rollout.engine import EngineSettings, generate
    from rollout.types import Request, Sampling
    from rollout.worker import RolloutWorker

    model = _random_model(asked["config"], folder)
    settings, steps = asked["rollout"], min(asked["completion"], MOST_STEPS)
    longest, threads = asked["prompt"] + steps, num_cores()
    sizes = EngineSettings(settings["dtype"], settings["kv_cache_gib"], settings["max_sequences"], longest, threads)
    worker = RolloutWorker(settings["engine"], sizes)
    worker.load_model(folder, version=0)
    rng = np.random.default_rng(0)
    numbers = (settings["max_sequences"], max(1, settings["max_sequences"] // 8))

    def draw(number: int) -> Callable[[], int]:
        prompts = [tuple(rng.integers(0, 256, asked["prompt"]).tolist()) for _ in range(-(-number // 8))]
        requests = [Request(str(i), prompts[i // 8], Sampling(steps), seed=i) for i in range(number)]
        return lambda: sum(len(drawn.tokens) for drawn in generate(worker.engine, requests, DEADLINE_S))

    (many_s, many), (few_s, few) = [(_best(draw(number)), draw(number)()) for number in numbers]
    token_s = max(0.0, (many_s - few_s) / (many - few))
    return {"layer_s": max(0.0, few_s - few * token_s) / steps / model.layers, "token_s": token_s}


def _random_model(config: dict[str, Any], folder: Path) -> Architecture:
    """Written to ``folder`` with a tokenizer of few words, since nothing is read."""
    import torch
    from transformers import AutoModelForCausalLM

    from grpo.config import Tags
    from grpo.policy.budget import config_from_json
    from grpo.tiny import make_tokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_from_json(json.dumps(config))).save_pretrained(folder)
    make_tokenizer(["Calculate 3 + 4."], [], Tags()).save_pretrained(folder)
    return Architecture("measured", config, "measured", folder)


def _batch(samples: int, prompt: int, completion: int, vocabulary: int) -> Any:
    import numpy as np

    from grpo.policy.batch import make_batch

    rng = np.random.default_rng(0)
    asked = rng.integers(0, vocabulary, prompt).tolist()
    completions = [rng.integers(0, vocabulary, completion).tolist() for _ in range(samples)]
    batch = make_batch([asked] * samples, completions, group=[0] * samples, advantages=rng.normal(size=samples))
    return batch.with_weights("sequence_mean", max_tokens=completion)


def _bytes_per_s(torch: Any) -> float:
    """Read and written, copying."""
    block = torch.ones(2**26 // 4)
    other = torch.empty_like(block)
    return 2 * 2**26 / _best(lambda: other.copy_(block))


def _best(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        call()
        seconds.append(time.monotonic() - started)
    return min(seconds)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure = {"trainer": measure_trainer, "engine": measure_engine}[sys.argv[1]]
        print(json.dumps(measure(json.load(sys.stdin), Path(folder))))


if __name__ == "__main__":
    main()
