"""How many samples a second does a GRPO step make, against TRL's GRPOTrainer on the same machine?

    python scripts/bench_vs_trl.py [--model {tiny,smollm2}] [--path models/smollm2-135m-instruct] [--lengths natural|32|128]
                                   [--rounds 2] [--steps 3] [--json]

The same on both sides: model folder, prompts, 8 prompts x 8 samples, temperature 1, KL coefficient 0.04, loss (TRL's loss_type="grpo"), bfloat16
autocast, no checkpointing, one update a step, and a random reward, so that no group is skipped. Lengths: natural lets completions end by themselves
under a limit of 128; a number forces that length by giving the model another end token, which it never draws. Each side runs in processes of its
own, alternating; the first step of a run warms up and is left out; medians are compared. TRL generates with transformers, which is what it can do
on a CPU. Ours is `grpo run`: Ray, vLLM, the trainer, a proven weight sync each step.

Memory is the peak of the proportional set size over all processes of a side. Phases of ours are a step's own metrics; TRL's are measured around its
methods: drawing, log-probabilities (of the old policy and the reference, with rewards), the rest. A phase's limit is what the machine's matrix
products and memory would allow, measured in the same run:

    rollout   each token step reads all weights once, and each token takes 2 x parameters operations: the longer of the two
    update    6 x parameters x tokens, and 2 more for the reference; a shared prompt once
    sync      the weights in bfloat16, written, moved and loaded: three copies
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PROMPTS, SAMPLES, LIMIT, BETA = 8, 8, 128, 0.04
PROMPT_TOKENS = 10  # about
REWARD = """
import random
def chance(prompt_id: str, completion: str) -> float:
    return random.Random(prompt_id + completion).random()
"""
PHASES = ("rollout", "reward", "update", "sync")
TRL_PHASES = ("rollout", "logprobs", "update")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--path", type=Path, default=Path("models/smollm2-135m-instruct"), help="where scripts/fetch_smollm2.py put it")
    parser.add_argument("--lengths", choices=("natural", "32", "128"), default="natural")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a run")
    parser.add_argument("--only-trl", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    if arguments.only_trl:
        return run_trl(arguments.only_trl, arguments.steps, limit_of(arguments))
    with tempfile.TemporaryDirectory() as folder:
        result = compare(Path(folder), arguments)
    if arguments.json:
        print(json.dumps(result))
    return 0


def limit_of(arguments: argparse.Namespace) -> int:
    return LIMIT if arguments.lengths == "natural" else int(arguments.lengths)


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    prepare_model(folder / "model", arguments)
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for round_ in range(arguments.rounds):
        for name in sides:
            place = folder / f"{name}-{round_}"
            place.mkdir()
            sides[name].append(run_ours(folder, place, arguments) if name == "ours" else run_trl_apart(folder, arguments))
            last = sides[name][-1]
            print(
                f"{name}: {last['step_s']:.2f} s a step, {last['tokens']:.0f} tokens a completion, {last['peak_gib']:.1f} GiB", flush=True
            )
    medians = {name: statistics.median(run["step_s"] for run in runs) for name, runs in sides.items()}
    memory = {name: max(run["peak_gib"] for run in runs) for name, runs in sides.items()}
    phases = {phase: statistics.median(run["phases"][phase] for run in sides["ours"]) for phase in PHASES}
    tokens = {name: statistics.median(run["tokens"] for run in runs) for name, runs in sides.items()}
    ratio = medians["trl"] / medians["ours"]
    rates = {name: PROMPTS * SAMPLES / seconds for name, seconds in medians.items()}
    print(f"{arguments.model}, {arguments.lengths}: ours {rates['ours']:.2f} samples/s, TRL {rates['trl']:.2f}: {ratio:.1f} times as many")
    limits = limits_of(folder / "model", sides["ours"][-1], BETA > 0)
    of_trl = {phase: statistics.median(run["phases"][phase] for run in sides["trl"]) for phase in TRL_PHASES}
    print("  ours, seconds (limit): " + ", ".join(f"{phase} {phases[phase]:.2f} ({limits.get(phase, 0):.2f})" for phase in PHASES))
    print("  TRL, seconds: " + ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in of_trl.items()))
    print(f"  peak memory: ours {memory['ours']:.1f} GiB, TRL {memory['trl']:.1f} GiB")
    return {
        "model": arguments.model,
        "lengths": arguments.lengths,
        "ratio": ratio,
        "samples_per_s": rates,
        "step_s": medians,
        "phases_s": {"ours": phases, "trl": of_trl},
        "limits_s": limits,
        "tokens": tokens,
        "peak_gib": memory,
        "rounds": arguments.rounds,
    }


def limits_of(model: Path, run: dict[str, Any], has_reference: bool) -> dict[str, float]:
    """Seconds that each phase of ours would take at the machine's own rates."""
    import torch
    from bench_trainer import matmul_rate
    from safetensors import safe_open

    parameters = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - no dictionary
    rate = matmul_rate(torch.device("cpu"))
    block = torch.ones(2**26)
    block.clone()
    started = time.perf_counter()
    block.clone()
    bytes_per_s = 2 * block.nbytes / (time.perf_counter() - started)
    drawn = PROMPTS * SAMPLES * run["tokens"]
    return {
        "rollout": max(run["longest"] * 2 * parameters / bytes_per_s, 2 * parameters * drawn / rate),
        "update": (8 if has_reference else 6) * parameters * (drawn + PROMPTS * PROMPT_TOKENS) / rate,
        "sync": 3 * 2 * 2 * parameters / bytes_per_s,
    }


def prepare_model(folder: Path, arguments: argparse.Namespace) -> None:
    """The model both sides load; with forced lengths its end token is one that it never writes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    if arguments.model == "tiny":
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from grpo.config import Tags
        from grpo.resources.tiny_models import make_tokenizer

        tokenizer = make_tokenizer(questions(20), [], Tags())
        sizes = dict(hidden_size=256, intermediate_size=768, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=4)
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes))
    else:
        if not (arguments.path / "config.json").exists():
            raise SystemExit(
                f"bench_vs_trl: no model in {arguments.path}; run scripts/fetch_smollm2.py first, or name its folder with --path"
            )
        tokenizer = AutoTokenizer.from_pretrained(arguments.path)
        model = AutoModelForCausalLM.from_pretrained(arguments.path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if arguments.lengths != "natural":
        tokenizer.add_special_tokens({"eos_token": "<|never|>"})
        # The embedding has no row for it: an id that cannot be drawn. Only its number is compared with what was drawn.
        model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def questions(steps: int) -> list[str]:
    """SmolLM2 answers these in about 25 tokens, and now and then in more than a hundred."""
    return [f"What is {7 + i} + {5 + i}?" for i in range(PROMPTS * (steps + 1))]


# -------------------------------------------------------------------------------------------------------------------------- ours


def run_ours(folder: Path, place: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    (place / "chance.py").write_text(REWARD, encoding="utf-8")
    (place / "rows.jsonl").write_text("\n".join(json.dumps({"question": q}) for q in questions(arguments.steps)), encoding="utf-8")
    recipe = {
        "name": "bench",
        "model": {"path": str(folder / "model")},
        "template": "plain",
        "data": {"rows": {"jsonl": "rows.jsonl"}},
        "rollout": {"max_sequences": PROMPTS * SAMPLES},
        "stages": [
            {
                "name": "reason",
                "kind": "rl",
                "prompts": "rows",
                "rewards": [{"use": "./chance.py:chance"}],
                "steps": arguments.steps + 1,
                "prompts_per_step": PROMPTS,
                "samples_per_prompt": SAMPLES,
                "max_prompt_tokens": 64,
                "max_completion_tokens": limit_of(arguments),
                "learning_rate": 1e-6,
                "kl_coef": BETA,
            }
        ],
    }
    (place / "bench.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("grpo")), "run", str(place / "bench.yaml"), "--out", str(place / "run")]
    peak = run_watched(command)
    steps = [json.loads(line) for line in (place / "run" / "01-reason" / "metrics.jsonl").read_text().splitlines()][1:]
    median = lambda key: statistics.median(step[key] for step in steps)  # noqa: E731
    samples = [json.loads(line) for line in (place / "run" / "01-reason" / "samples.jsonl").read_text().splitlines()]
    return {
        "longest": statistics.median(max(row["completion_tokens"] for row in samples if row["step"] == step["step"]) for step in steps),
        "step_s": median("time/step_s"),
        "phases": {phase: median(f"time/{phase}_s") for phase in PHASES},
        "tokens": median("rollout/completion_tokens"),
        "peak_gib": peak,
    }


# -------------------------------------------------------------------------------------------------------------------------- TRL's


def run_trl_apart(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--only-trl", str(folder), "--model", arguments.model]
    peak = run_watched([*command, "--lengths", arguments.lengths, "--steps", str(arguments.steps)])
    return {**json.loads((folder / "trl.json").read_text()), "peak_gib": peak}


def run_trl(folder: Path, steps: int, limit: int) -> int:
    import random

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    ends: list[float] = []
    lengths: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def chance(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.append(statistics.mean(map(len, completion_ids)))
        return [random.random() for _ in completions]

    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps + 1,
        per_device_train_batch_size=PROMPTS * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=limit,
        temperature=1.0,
        beta=BETA,
        loss_type="grpo",
        learning_rate=1e-6,
        bf16=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    dataset = Dataset.from_list([{"prompt": question} for question in questions(steps)])
    trainer = GRPOTrainer(model=str(folder / "model"), args=settings, reward_funcs=chance, train_dataset=dataset, callbacks=[Clock()])
    drawing, scoring = timed(trainer, "_generate"), timed(trainer, "_generate_and_score_completions")
    trainer.train()
    seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    step, rollout, scored = (statistics.median(values[1:] if values is not seconds else values) for values in (seconds, drawing, scoring))
    phases = {"rollout": rollout, "logprobs": scored - rollout, "update": step - scored}
    found = {"step_s": step, "tokens": statistics.median(lengths[1:]), "phases": phases}
    (folder / "trl.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


def timed(owner: Any, method: str) -> list[float]:
    """Seconds of each call of ``method`` from now on."""
    plain, seconds = getattr(owner, method), []

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(owner, method, call)
    return seconds


# -------------------------------------------------------------------------------------------------------------------------- memory


def run_watched(command: list[str]) -> float:
    """Run to its end; the peak of what it and its children hold, in GiB, looked at twice a second. Raises SystemExit where it fails."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = [0.0]
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, done))
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(f"bench_vs_trl: {' '.join(command)} failed:\n{output[-3000:]}")
    return peak[0]


def _watch(pid: int, peak: list[float], done: threading.Event) -> None:
    import psutil

    root = psutil.Process(pid)
    while not done.wait(0.5):
        held = 0
        try:
            for process in (root, *root.children(recursive=True)):
                held += _proportional_bytes(process.pid)
        except psutil.Error:
            continue
        peak[0] = max(peak[0], held / 2**30)


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    raise SystemExit(main())
