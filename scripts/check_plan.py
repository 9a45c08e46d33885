"""Does a plan that was calibrated on one configuration foretell another? Short real runs against what grpo plan says of them.

    python scripts/check_plan.py [--steps 8] [--json]

Costs are measured once, as `grpo plan --measure` does, with the model and lengths of the first configuration, and drawing and updating then scaled
to what its run took (the factors are printed). The others have longer completions and another model. All are r1_zero_tiny with a base model of
random weights, which hardly ever ends a completion early. Times are medians over steps after the first, of drawing and updating; a run's mean
completion length is given to the plan. Peak memory is the sum over all processes of a run, pages that several share counted once; what is not
shapes (Python, Ray, vLLM) is taken from the first configuration's run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from grpo.pipeline.run import checked_recipe
from grpo.plan import plan as whole
from grpo.plan.duration import Costs, Rates, seconds_of_drawing, seconds_of_update
from grpo.plan.work import Lengths, drawings, training_of
from rollout.memory import bytes_of_tree

SHORT = ["model.pretrain_updates=0", "evaluation=null", "stages.reason.eval_every=null", "stages.reason.warmup_updates=0"]
CONFIGURATIONS = {
    "calibration": [],
    "longer": ["stages.reason.max_completion_tokens=160"],
    "larger": ["model.hidden_size=256", "model.layers=6"],
}
PROMPT_TOKENS = 20  # of these templates and sums, with the tiny model's tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: real_run([*SHORT, *changes, f"stages.reason.steps={arguments.steps}"], Path(folder) / name)
            for name, changes in CONFIGURATIONS.items()
        }
        rates, found = None, {}
        for name, changes in CONFIGURATIONS.items():
            plan = whole.outline(checked_recipe("r1_zero_tiny", [*SHORT, *changes]), Path(folder) / "planned")
            lengths = Lengths(PROMPT_TOKENS, round(runs[name]["completion_tokens"]))
            needed = whole.needs(plan, lengths, measure=rates is None)
            rates = rates or needed.rates
            found[name] = {**foretold(plan, needed, lengths, rates), "measured": runs[name]}
    calibration = found["calibration"]
    fixed = calibration["measured"]["peak_bytes"] - calibration["shapes_bytes"]
    factors = {part: calibration["measured"][part] / calibration[part] for part in ("rollout_s", "update_s")}
    for of_one in found.values():
        measured = of_one["measured"]
        of_one |= {f"uncalibrated_{part}": of_one[part] for part in factors} | {part: of_one[part] * by for part, by in factors.items()}
        of_one["step_s"] = of_one["rollout_s"] + of_one["update_s"]
        of_one["peak_bytes"] = fixed + of_one.pop("shapes_bytes")
        of_one["step_ratio"] = of_one["step_s"] / measured["step_s"]
        of_one["peak_ratio"] = of_one["peak_bytes"] / measured["peak_bytes"]
    for name, of_one in found.items():
        measured = of_one["measured"]
        peaks = f"peak {of_one['peak_bytes'] / 2**30:.2f} GiB foretold, {measured['peak_bytes'] / 2**30:.2f} measured"
        print(f"{name}: step {of_one['step_s']:.2f} s foretold, {measured['step_s']:.2f} measured ({of_one['step_ratio']:.2f}); {peaks}")
    worst = max(abs(of_one[key] - 1) for name, of_one in found.items() if name != "calibration" for key in ("step_ratio", "peak_ratio"))
    print("calibrated by", {part: round(by, 2) for part, by in factors.items()})
    print(f"largest error off the calibration: {worst:.0%}")
    if arguments.json:
        print(json.dumps({"configurations": found, "rates": vars(rates), "largest_error": worst}))
    return 0


def foretold(plan: whole.Outline, needed: whole.Needs, lengths: Lengths, rates: Rates | Costs) -> dict[str, float]:
    """Seconds of one step's drawing and updating, and the bytes that follow from shapes."""
    stage, memory = plan.recipe.stages[0], needed.memory["reason"]
    (drawn,) = drawings(stage, plan.recipe, plan.architectures, {}, lengths)
    training = training_of(stage, plan.architectures, True, {}, lengths)
    drawing_s = seconds_of_drawing(drawn, plan.recipe, rates)
    update_s = seconds_of_update(training, memory.tokens_per_pass, memory.trained, plan.recipe, rates)
    return {
        "rollout_s": drawing_s,
        "update_s": update_s,
        "step_s": drawing_s + update_s,
        "shapes_bytes": sum(h.needed for h in memory.holdings),
    }


def real_run(changes: list[str], out: Path) -> dict[str, Any]:
    """One run in a process of its own. Raises SystemExit with its last words where it fails."""
    log = out.with_suffix(".log")
    with log.open("w") as output:
        command = [sys.executable, "-m", "grpo.cli", "run", "r1_zero_tiny", *changes, "--out", str(out)]
        run = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[1])
        peak = 0
        while run.poll() is None:
            peak = max(peak, bytes_of_tree(run.pid))
            time.sleep(1.0)
    if run.returncode:
        raise SystemExit(f"a run failed: {' '.join(changes)}\n{log.read_text()[-2000:]}")
    steps = [json.loads(line) for line in (out / "01-reason" / "metrics.jsonl").read_text().splitlines()][1:]
    middle = {key: statistics.median(step[f"time/{key}_s"] for step in steps) for key in ("rollout", "update")}
    completion = statistics.mean(step["rollout/completion_tokens"] for step in steps)
    seconds = {"rollout_s": middle["rollout"], "update_s": middle["update"], "step_s": middle["rollout"] + middle["update"]}
    return {**seconds, "completion_tokens": completion, "peak_bytes": peak}


if __name__ == "__main__":
    raise SystemExit(main())
