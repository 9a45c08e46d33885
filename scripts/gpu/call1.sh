#!/usr/bin/env bash
# The trainer. Needs no vLLM. The first argument limits the seconds (default 300); the most valuable checks come first.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" "${1:-300}" base
PYTEST="$PY -m pytest -q -o minversion=1 -p no:cacheprovider"
check probe 40 "$PY" "$KIT/probe.py"
check truth 80 "$PY" "$KIT/truth.py"
check bench-0.5b 130 "$PY" "$KIT/bench.py" qwen2.5-0.5b --max-tokens 16384 --variants
check bench-1.5b 80 "$PY" "$KIT/bench.py" qwen2.5-1.5b --sleep
check run-hf 90 "$GRPO" run r1_zero_tiny $TRAIN rollout.engine=hf rollout.max_sequences=64 stages.reason.steps=3 \
  stages.reason.prompts_per_step=8 stages.reason.samples_per_prompt=8 --out "$WORK/run-hf"
check tests-gpu 40 $PYTEST -m gpu tests/trainer
check tests-trainer 90 $PYTEST $PARALLEL -m "not slow and not faults and not gpu" tests/trainer tests/algorithm
last_metrics run-hf run-hf.jsonl
finish
