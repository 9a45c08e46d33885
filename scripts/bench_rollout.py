"""How much of an engine's speed is left once a pool stands around it, and how much time does the pool itself take?

    python scripts/bench_rollout.py [--path MODEL] [--prompts 16] [--samples 8] [--tokens 64] [--rounds 3] [--json]
    python scripts/bench_rollout.py --controller [--workers 64] [--prompts 64] [--samples 16] [--tokens 1000] [--json]
    python scripts/bench_rollout.py --overlap [--seconds 1.0] [--json]

First: a pool of one vLLM worker against a bare LLM.generate of the same requests in a process of its own; both are warm, and take turns. Without
--path the model has 4M parameters and random weights. The ratio is the pool's samples a second by the bare engine's.

--controller: the driver's own processor time for a step of prompts x samples completions from many scripted workers: handing out requests, taking
completions, making the batch. What the workers do in their processes is not counted.

--overlap: a step of the real loop with max_staleness 1 against strict alternation, where a scripted rollout and an update that only takes its time
are equally long. The ratio is the overlapped step's seconds by the strict one's; 0.5 is the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
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
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a rollout, and of an update, with --overlap")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    defaults = (64, 16, 1000) if arguments.controller else (16, 8, 64)
    for name, value in zip(("prompts", "samples", "tokens"), defaults, strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    from grpo.resources.ray_cluster import start_ray

    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        measure = controller if arguments.controller else overlap if arguments.overlap else against_bare
        result = measure(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(result))
    return 0


def against_bare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import ray

    from rollout.engines.base import EngineSettings
    from rollout.engines.vllm import environment
    from rollout.pool import PoolSettings, RolloutPool

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
        assert tokens == sum(completion.num_tokens for group in drawn for completion in group), "both draw as many tokens"
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
        from rollout.engines.vllm import VllmEngine

        engine = VllmEngine(settings)
        engine.load_model(model, 0)
        self.llm = engine._llm

    def generate(self, prompts: list[tuple[int, ...]], samples: int, sampling: Any, step: int) -> tuple[int, float]:
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": list(tokens)} for tokens in prompts for _ in range(samples)]
        seeds = [step * len(asked) + i for i in range(len(asked))]
        params = [SamplingParams(max_tokens=sampling.max_tokens, temperature=sampling.temperature, seed=seed, logprobs=0) for seed in seeds]
        started = time.perf_counter()
        outputs = self.llm.generate(asked, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs), time.perf_counter() - started


def controller(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from grpo.trainer.batch import batch_of_groups
    from grpo.types import Group, Sample
    from rollout.engines.base import EngineSettings
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


def overlap(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    model = tiny_model(folder / "model")
    strict, in_turns = loop_of(0, folder, model, arguments.seconds)
    overlapped, ahead = loop_of(1, folder, model, arguments.seconds)
    ratio = overlapped / strict
    print(
        f"rollout and update of {arguments.seconds:.1f} s each: {strict:.2f} s a step in turns, {overlapped:.2f} s overlapped ({ratio:.2f} of it)"
    )
    return {"ratio": ratio, "strict_s": strict, "overlapped_s": overlapped, "rollouts_begun": {"strict": in_turns, "overlapped": ahead}}


def loop_of(staleness: int, folder: Path, model: Path, seconds: float, steps: int = 5) -> tuple[float, list[int]]:
    """Median seconds of a step between the first and the last, and how many rollouts had begun when each update ended."""
    from types import SimpleNamespace

    from grpo.algorithm import GRPO
    from grpo.config import Recipe
    from grpo.rl.context import RlContext
    from grpo.rl.loop import make_loop
    from rewards import RewardRuntime, RewardSpec
    from rollout.engines.base import EngineSettings
    from rollout.pool import PoolSettings, RolloutPool

    (folder / "script.py").write_text(
        f"import time\n{SCRIPT}".replace("    return", f"    time.sleep({seconds / 8})\n    return"), encoding="utf-8"
    )
    (folder / "size.py").write_text("def size(completion: str) -> float:\n    return float(len(completion))\n", encoding="utf-8")
    stage = {"name": "reason", "kind": "rl", "prompts": "p", "rewards": [{"use": "./size.py:size"}], "steps": steps, "prompts_per_step": 2}
    recipe = Recipe.model_validate(
        {
            "name": "overlap",
            "model": "none",
            "data": {"p": {"jsonl": "none"}},
            "rollout": {"engine": "scripted", "script": "./script.py:numbers", "max_staleness": staleness},
            "stages": [{**stage, "samples_per_prompt": 4, "max_completion_tokens": 8}],
        }
    )
    pool = RolloutPool("scripted", EngineSettings(max_tokens=64), PoolSettings(), "./script.py:numbers", folder)
    pool.load_model(model, version=0)
    prompts = requests_of(argparse.Namespace(prompts=4, tokens=8), 0)[0]
    prompts = [replace(prompt, columns={"prompt": "none"}) for prompt in prompts]
    trainer = SleepingTrainer(seconds, pool)
    progress: Any = SimpleNamespace(doing=lambda *_: None, say=lambda *_: None)
    context = RlContext(recipe.stages[0], recipe, GRPO, folder, progress)  # type: ignore[arg-type]
    with RewardRuntime([RewardSpec("./size.py:size")], deadline_s=5.0, base=folder) as rewards:
        loop = make_loop(context, trainer, pool, rewards, prompts)  # type: ignore[arg-type]
        with loop:
            found = [loop.step(step).times["time/step_s"] for step in range(steps)]
    pool.close()
    return statistics.median(found[1:-1]), trainer.rollouts_begun


class SleepingTrainer:
    """A trainer's part of a step, as far as its time goes."""

    def __init__(self, seconds: float, pool: Any):
        self.seconds, self.rollouts_begun = seconds, []
        self._num_begun, self._sample = 0, pool.sample
        pool.sample = self._counted

    def _counted(self, *args: Any, **kwargs: Any) -> Any:
        self._num_begun += 1
        return self._sample(*args, **kwargs)

    def policy_update(self, batch: Any, bound: float) -> dict[str, float]:
        time.sleep(self.seconds)
        self.rollouts_begun.append(self._num_begun)
        return {"train/skipped_updates": 0.0}

    def export(self, version: int, dtype: str) -> Any:
        import ray
        import torch

        from rollout.weight_sync.weights import pack_weights

        return ray.put(pack_weights([("w", torch.ones(2, 2))], version, torch.bfloat16))


def requests_of(arguments: argparse.Namespace, step: int) -> tuple[list[Any], Any]:
    """Prompts that differ between steps, so that no prefix cache answers, and completions of exactly so many tokens where none ends early."""
    import random

    from rollout.types import Prompt, SamplingParams

    rng = random.Random(step)
    prompts = [Prompt(f"{step}/{i}", tuple(rng.randrange(40, 200) for _ in range(20))) for i in range(arguments.prompts)]
    return prompts, SamplingParams(arguments.tokens)


def tiny_model(folder: Path) -> Path:
    """4M parameters of random weights, whose end token is never drawn: every completion has its full length."""
    sys.path.insert(0, str(Path(__file__).parent))
    from bench_vs_trl import prepare_model

    prepare_model(folder, argparse.Namespace(model="tiny", lengths="128"))
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
