"""What do updates and draws cost on this machine? Some are timed with random weights, in processes of their own, and costs fitted to them.

Timed are the recipe's model in two sizes of batch and two lengths, and beside it one of half the layers and one of half the width: without them
nothing could be said of another model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from grpo.config import Recipe
from grpo.errors import TrainingError
from grpo.plan.architecture import Architecture
from grpo.plan.duration import OPTIMIZER_BYTES, Costs, draw_quantities, update_quantities
from grpo.plan.work import Drawing, Training
from grpo.trainer.machine import host_bytes
from grpo.util.cores import num_cores

ROUNDS = 3
PART = 6  # the smaller batch is so much smaller
LONGER = 2.5  # the longer completions are so much longer
MOST_STEPS = 64  # token steps of a shorter draw
SHARERS = 8  # samples of a prompt
SWEEPS = 20_000  # of the fit: half a second
DRAW = ("steps", "step_layers", "tokens", "token_layers", "token_parameters", "seen_bytes")
DEADLINE_S = 900.0


def measured_costs(recipe: Recipe, model: Architecture, prompt: int, completion: int, tokens_per_pass: int) -> Costs:
    """Around updates and draws of such lengths. Raises TrainingError where the model is too large to be measured here, or a process fails."""
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
    asked |= {"prompt": prompt, "completion": completion, "tokens_per_pass": max(tokens_per_pass, prompt + round(LONGER * completion))}
    trainer = _apart("trainer", asked)
    draw = _apart("engine", asked) if recipe.rollout.engine != "scripted" else dict.fromkeys(DRAW, 0.0)
    return Costs(trainer["update"], draw, trainer["bytes_per_s"])


def _apart(what: str, asked: dict[str, Any]) -> dict[str, Any]:
    """In a fresh process, as in a run; in a folder where no file of the user's hides a package."""
    from grpo.trainer.remote import KEEP_FREED_MEMORY

    environment = {**os.environ, **(KEEP_FREED_MEMORY if what == "trainer" else {}), "OMP_NUM_THREADS": str(num_cores())}
    command = [sys.executable, "-m", "grpo.plan.measure", what]
    here = Path(__file__).parents[2]
    ran = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, env=environment, cwd=here, timeout=DEADLINE_S)
    if ran.returncode:
        raise TrainingError(f"--measure: the {what} failed: {(ran.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(ran.stdout.strip().splitlines()[-1])


# --- In the process apart -------------------------------------------------------------------------


def measure_trainer(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Updates of one pass, by the trainer itself."""
    from dataclasses import replace

    import torch

    from grpo.algorithm import GRPO
    from grpo.config import OptimizerKeys, Trainer
    from grpo.trainer.policy_trainer import PolicyTrainer, TrainerSpec

    prompt, completion, tokens = asked["prompt"], asked["completion"], asked["tokens_per_pass"]
    bytes_per_s = _bytes_per_s(torch)
    timed = []
    for model, lengths in _models(asked, folder):
        layout, optimizer = Trainer(precision=asked["precision"]), OptimizerKeys(learning_rate=1e-6, max_tokens_per_micro_batch=tokens)
        algorithm = replace(GRPO, kl_coef=0.0)
        assert model.folder is not None
        trainer = PolicyTrainer(TrainerSpec(model.folder, optimizer, 1000, algorithm, num_threads=num_cores(), layout=layout))
        for own in (round(length * completion) for length in lengths):
            sharers = min(SHARERS, max(1, (tokens - prompt) // own))
            most = max(1, tokens // (prompt + sharers * own))
            for prompts in (most, max(1, most // PART)) if own == completion else (most,):
                batch = _batch(prompts, sharers, prompt, own, asked["config"]["vocab_size"])
                work = Training(1, prompts, sharers, prompt, own, 3, model)
                optimizer_s = OPTIMIZER_BYTES * model.parameters / bytes_per_s
                timed.append((update_quantities(work, 1), _typical(partial(trainer.policy_update, batch)) - optimizer_s))
    return {"update": fitted(timed), "bytes_per_s": bytes_per_s}


def measure_engine(asked: dict[str, Any], folder: Path) -> dict[str, float]:
    """Draws, by the engine itself, which ends none of them early."""
    import numpy as np

    from rollout.engines.base import EngineSettings, generate
    from rollout.types import Request, SamplingParams
    from rollout.worker import RolloutWorker

    settings, prompt, usual = asked["rollout"], asked["prompt"], min(asked["completion"], MOST_STEPS)
    longest, most, rng = prompt + round(LONGER * usual), settings["max_sequences"], np.random.default_rng(0)
    worker = RolloutWorker(settings["engine"], EngineSettings(settings["dtype"], settings["kv_cache_gib"], most, longest, num_cores()))
    timed = []

    def draw(number: int, own: int) -> int:
        prompts = [tuple(rng.integers(0, 256, prompt).tolist()) for _ in range(-(-number // SHARERS))]
        requests = [Request(str(i), prompts[i // SHARERS], SamplingParams(own), seed=i) for i in range(number)]
        return sum(len(drawn.tokens) for drawn in generate(worker.engine, requests, DEADLINE_S))

    for model, lengths in _models(asked, folder):
        assert model.folder is not None
        worker.load_model(model.folder, version=0)
        for own in (round(length * usual) for length in lengths):
            for number in (most, max(1, most // PART)) if own == usual else (most,):
                seconds = _typical(partial(draw, number, own))
                work = Drawing("measured", 1, number, SHARERS, prompt, draw(number, own) / number, own, model)
                timed.append((draw_quantities(work, most), seconds))
    return fitted(timed)


def fitted(timed: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Costs, none below 0, whose sums come nearest to the seconds, as a fraction of each: least squares by cyclic coordinate descent."""
    import numpy as np

    names = list(timed[0][0])
    shares = np.array([[quantities[name] / seconds for name in names] for quantities, seconds in timed])
    scale = np.linalg.norm(shares, axis=0)
    shares, costs, rest = shares / scale, np.zeros(len(names)), np.ones(len(timed))
    for _ in range(SWEEPS):
        for j, column in enumerate(shares.T):
            moved = max(-costs[j], column @ rest)
            costs[j] += moved
            rest -= moved * column
    return dict(zip(names, (costs / scale).tolist(), strict=True))


def _models(asked: dict[str, Any], folder: Path) -> Iterator[tuple[Architecture, tuple[float, ...]]]:
    """The recipe's, to be timed with completions of its length and longer ones; of half its layers, and half its width."""
    config = asked["config"]
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    half = max(1, layers // 2)
    kinds = {"layer_types": config["layer_types"][:half]} if config.get("layer_types") else {}
    narrow = {name: max(1, config[name] // 2) for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    size = config.get("head_dim") or config["hidden_size"] // heads
    yield _random_model(config, folder / "whole"), (1.0, LONGER)
    yield _random_model({**config, "num_hidden_layers": half, **kinds}, folder / "shallow"), (1.0,)
    yield _random_model({**config, **narrow, "num_key_value_heads": 1, "head_dim": size}, folder / "narrow"), (1.0,)


def _random_model(config: Mapping[str, Any], folder: Path) -> Architecture:
    """Written to ``folder`` with a tokenizer of few words, since nothing is read."""
    import torch
    from transformers import AutoModelForCausalLM

    from grpo.config import Tags
    from grpo.resources.tiny_models import make_tokenizer
    from grpo.trainer.memory_budget import config_from_json

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_from_json(json.dumps(config))).save_pretrained(folder)
    make_tokenizer(["Calculate 3 + 4."], [], Tags()).save_pretrained(folder)
    return Architecture("measured", config, "measured", folder)


def _batch(prompts: int, sharers: int, prompt: int, completion: int, vocabulary: int) -> Any:
    """Groups whose completions differ in length, as drawn ones do."""
    import numpy as np

    from grpo.trainer.batch import make_batch

    rng, number = np.random.default_rng(0), prompts * sharers
    asked = [rng.integers(0, vocabulary, prompt).tolist() for _ in range(prompts)]
    lengths = rng.permutation(np.linspace(0.5, 1.5, number) * completion).round().astype(int).clip(1)
    completions = [rng.integers(0, vocabulary, length).tolist() for length in lengths]
    group = [index // sharers for index in range(number)]
    batch = make_batch([asked[index] for index in group], completions, group=group, advantages=rng.normal(size=number))
    return batch.with_weights("sequence_mean", max_tokens=2 * completion)


def _bytes_per_s(torch: Any) -> float:
    """Read and written, copying."""
    block = torch.ones(2**26 // 4)
    other = torch.empty_like(block)
    return 2 * 2**26 / _typical(lambda: other.copy_(block))


def _typical(call: Callable[[], Any]) -> float:
    """The median of some calls' seconds, after one that does not count."""
    call()
    seconds = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        call()
        seconds.append(time.monotonic() - started)
    return median(seconds)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure = {"trainer": measure_trainer, "engine": measure_engine}[sys.argv[1]]
        print(json.dumps(measure(json.load(sys.stdin), Path(folder))))


if __name__ == "__main__":
    main()
