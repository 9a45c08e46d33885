#!/usr/bin/env bash
# vLLM. The first argument limits the seconds (default 280); the most valuable checks come first.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" "${1:-280}" base vllm
export VLLM_LOGGING_LEVEL=WARNING
PYTEST="$PY -m pytest -q -o minversion=1 -p no:cacheprovider"
check engine-tiny 60 "$PY" "$KIT/engine.py" tiny --sequences 32 --prompt-tokens 16 --completion-tokens 32 --sleep
check run-vllm 90 "$GRPO" run r1_zero_tiny $TRAIN stages.reason.steps=4 --out "$WORK/run-vllm"
check engine-0.5b 70 "$PY" "$KIT/engine.py" qwen2.5-0.5b --sleep
check run-sleep 80 "$GRPO" run r1_zero_tiny $TRAIN stages.reason.steps=3 rollout.sleep=true --out "$WORK/run-sleep"
check tests-engine-gpu 70 $PYTEST -m gpu tests/rollout/engines/test_gpu.py
check tests-engine 60 $PYTEST -k vllm -m "not slow and not faults" tests/rollout/engines/test_conformance.py
for run in run-vllm run-sleep; do last_metrics "$run" "$run.jsonl"; done
finish
