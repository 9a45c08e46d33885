"""How much faster is an update on group-packed rows than on one padded row a sequence?

    python scripts/bench_packing.py [--prompt 48] [--completion 36] [--prompts 8] [--samples 8] [--rounds 5] [--json]

The same model (SmolLM2-135M's shapes, random weights), loss and sequences; the two layouts alternate in one process, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=48, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument(
        "--completion", type=int, default=36, help="mean tokens of a completion, which vary by a third (default: %(default)s)"
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), arguments.layers)
        packed = make_random_batch(arguments)
        padded = replace(packed, group=np.arange(len(packed)))  # every sequence a group of its own: no prompt is shared
        seconds: dict[str, list[float]] = {"packed": [], "padded": []}
        for round_ in range(arguments.rounds + 1):
            for name, batch in (("packed", packed), ("padded", padded)):
                started = time.perf_counter()
                trainer.policy_update(batch)
                if round_:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "packed_s": median["packed"],
        "padded_s": median["padded"],
        "ratio": median["padded"] / median["packed"],
        "rounds": arguments.rounds,
    }
    print(
        f"update: group-packed {median['packed']:.2f} s, one row a sequence {median['padded']:.2f} s, {result['ratio']:.2f} times as fast"
    )
    if arguments.json:
        print(json.dumps(result))
    return 0


def make_trainer(folder: Path, layers: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    from grpo.algorithm import GRPO
    from grpo.config import Optimiser
    from grpo.policy.trainer import PolicyTrainer, TrainerSpec

    sizes = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3)
    LlamaForCausalLM(LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **sizes)).save_pretrained(folder)
    return PolicyTrainer(TrainerSpec(folder, Optimiser(learning_rate=1e-6), total_updates=100, algorithm=replace(GRPO, kl_coef=0.0)))


def make_random_batch(arguments: argparse.Namespace):
    from grpo.policy.batch import make_batch

    rng = np.random.default_rng(0)
    asked = [rng.integers(0, 49152, arguments.prompt).tolist() for _ in range(arguments.prompts)]
    group = [i for i in range(arguments.prompts) for _ in range(arguments.samples)]
    low, high = max(1, arguments.completion * 2 // 3), arguments.completion * 4 // 3 + 1
    completions = [rng.integers(0, 49152, rng.integers(low, high)).tolist() for _ in group]
    batch = make_batch([asked[i] for i in group], completions, group=group, advantages=rng.normal(size=len(group)))
    return batch.with_weights("sequence_mean", max_tokens=arguments.completion)


if __name__ == "__main__":
    raise SystemExit(main())
