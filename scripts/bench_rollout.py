"""How much of an engine's speed is left once a pool stands around it, and how much time does the pool itself take?

    python scripts/bench_rollout.py [--path MODEL] [--prompts 16] [--samples 8] [--tokens 64] [--rounds 3] [--json]
    python scripts/bench_rollout.py --controller [--workers 64] [--prompts 64] [--samples 16] [--tokens 1000] [--json]

First: a pool of one vLLM worker against a bare LLM.generate of the same requests in a process of its own; both are warm, and take turns. Without
--path the model has 4M parameters and random weights. The ratio is the pool's samples a second by the bare engine's.

--controller: the driver's own processor time for a step of prompts x samples completions from many scripted workers: handing out requests, taking
completions, making the batch. What the workers do in their processes is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPT = "def numbers(request, version):\n    return [40 + (request.seed + i) % 150 for i in range(request.sampling.max_tokens)]\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, help="a model's folder")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--tokens", type=int, help="of each completion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--controller", action="store_true")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    defaults = (64, 16, 1000) if arguments.controller else (16, 8, 64)
    for name, value in zip(("prompts", "samples", "tokens"), defaults, strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    from grpo.recipe import _start_ray

    _start_ray()
    with tempfile.TemporaryDirectory() as folder:
        result = controller(Path(folder), arguments) if arguments.controller else against_bare(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(result))
    return 0


def against_bare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import ray

    from rollout.engine import EngineSettings
    from rollout.pool import PoolSettings, RolloutPool
    from rollout.vllm_engine import environment

    model = arguments.path or tiny_model(folder / "model")
    settings = EngineSettings(max_sequences=arguments.prompts * arguments.samples, max_tokens=64 + arguments.tokens)
    pool = RolloutPool("vllm", settings, PoolSettings())
    pool.load_model(model.resolve(), version=0)
    options = {"num_cpus": 0, "num_gpus": settings.gpu_share, "runtime_env": {"env_vars": environment(settings)}}
    bare = ray.remote(Bare).options(**options).remote(settings, model.resolve())
    seconds: dict[str, list[float]] = {"pool": [], "bare": []}
    for round_ in range(arguments.rounds + 1):
        prompts, sampling = requests_of(arguments, round_)
        started = time.perf_counter()
        drawn = pool.sample(prompts, arguments.samples, sampling, seed=0, step=round_, deadline_s=600, progress=lambda *_: None)
        taken = {"pool": time.perf_counter() - started}
        tokens, taken["bare"] = ray.get(bare.generate.remote([p.tokens for p in prompts], arguments.samples, sampling, round_))
        assert tokens == sum(len(completion.tokens) for group in drawn for completion in group), "both draw as many tokens"
        if round_:
            for name in seconds:
                seconds[name].append(taken[name])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rates = {name: arguments.prompts * arguments.samples / value for name, value in medians.items()}
    ratio = rates["pool"] / rates["bare"]
    print(
        f"pool {rates['pool']:.1f} samples/s, bare {rates['bare']:.1f}: {ratio:.2f} of it ({tokens} tokens, medians of {arguments.rounds})"
    )
    pool.close()
    return {"ratio": ratio, "samples_per_s": rates, "tokens": tokens, "rounds": arguments.rounds}


class Bare:
    """vLLM as its own documentation uses it."""

    def __init__(self, settings: Any, model: Path):
        from rollout.vllm_engine import VllmEngine

        engine = VllmEngine(settings)
        engine.load_model(model, 0)
        self.llm = engine._llm

    def generate(self, prompts: list[tuple[int, ...]], samples: int, sampling: Any, step: int) -> tuple[int, float]:
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": list(tokens)} for tokens in prompts for _ in range(samples)]
        seeds = [step * len(asked) + i for i in range(len(asked))]
        params = [
            SamplingParams(max_tokens=sampling.max_tokens, temperature=sampling.temperature, seed=seed, logprobs=0, ignore_eos=False)
            for seed in seeds
        ]
        started = time.perf_counter()
        outputs = self.llm.generate(asked, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs), time.perf_counter() - started


def controller(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from grpo.policy.batch import batch_of_groups
    from grpo.types import Group, Sample
    from rollout.engine import EngineSettings
    from rollout.pool import PoolSettings, RolloutPool

    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    settings = EngineSettings(max_sequences=64, max_tokens=64 + arguments.tokens, num_threads=1)
    pool = RolloutPool("scripted", settings, PoolSettings(workers=arguments.workers), "./script.py:numbers", folder)
    pool.load_model(tiny_model(folder / "model"), version=0)
    own, wall = [], []
    for step in range(arguments.rounds + 1):
        prompts, sampling = requests_of(arguments, step)
        began, cpu = time.perf_counter(), time.process_time()
        drawn = pool.sample(prompts, arguments.samples, sampling, seed=0, step=step, deadline_s=600, progress=lambda *_: None)
        groups = [Group(p, tuple(Sample(p.id, c, 1.0, {}) for c in completions)) for p, completions in zip(prompts, drawn, strict=True)]
        batch = batch_of_groups(groups, np.ones((len(groups), arguments.samples)).tolist())
        own.append(time.process_time() - cpu)
        wall.append(time.perf_counter() - began)
    num = len(batch)
    seconds = statistics.median(own[1:])
    print(
        f"{arguments.workers} workers, {num} samples x {arguments.tokens} tokens: {seconds:.2f} s of the driver's processor time a step "
        f"({statistics.median(wall[1:]):.2f} s until all were there)"
    )
    pool.close()
    return {"controller_s": seconds, "wall_s": statistics.median(wall[1:]), "samples": num, "tokens": arguments.tokens}


def requests_of(arguments: argparse.Namespace, step: int) -> tuple[list[Any], Any]:
    """Prompts that differ between steps, so that no prefix cache answers, and completions of exactly so many tokens where none ends early."""
    import random

    from rollout.types import Prompt, Sampling

    rng = random.Random(step)
    prompts = [Prompt(f"{step}/{i}", tuple(rng.randrange(40, 200) for _ in range(20))) for i in range(arguments.prompts)]
    return prompts, Sampling(arguments.tokens)


def tiny_model(folder: Path) -> Path:
    """4M parameters of random weights, whose end token is never drawn: every completion has its full length."""
    sys.path.insert(0, str(Path(__file__).parent))
    from bench_vs_trl import prepare_model

    prepare_model(folder, argparse.Namespace(model="tiny", lengths="128"))
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
