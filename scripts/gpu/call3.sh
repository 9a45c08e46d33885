#!/usr/bin/env bash
# A small real model, by the toolkit and by TRL; faster settings of vLLM; weights by cuda_ipc. The first argument limits the seconds (default 170).
. "$(dirname "${BASH_SOURCE[0]}")/env.sh" "${1:-170}" base vllm
export VLLM_LOGGING_LEVEL=ERROR
MODEL=$WORK/smollm2
check model 45 "$PY" "$KIT/model.py" "$MODEL"
check run-smollm2 100 "$GRPO" run r1_zero_smollm2 model.path="$MODEL" stages.reason.steps=6 stages.reason.eval_every=null evaluation.rows=64 \
  --out "$WORK/run-smollm2"
check faster-0.5b 110 "$PY" "$KIT/engine.py" qwen2.5-0.5b --faster
check trl 75 "$PY" "$KIT/trl_side.py" "$MODEL"
check run-cuda-ipc 70 "$GRPO" run r1_zero_tiny $TRAIN stages.reason.steps=2 rollout.transport=cuda_ipc --out "$WORK/run-cuda-ipc"
for run in run-smollm2 run-cuda-ipc; do last_metrics "$run" "$run.jsonl"; done
finish
