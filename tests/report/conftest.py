"""A finished run of four stages, whose model writes what a page must not take for its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from grpo.report.page import write_report

ROOT = Path(__file__).parents[2]
NASTY = "<script>alert(1)</script>\x1b[31mred\x07\n</pre><img src=x onerror=alert(2)>\u202eevil\ud800 {{ 7 * 7 }}"
NAUGHTY = NASTY.replace("\ud800", "")  # in YAML, half a surrogate pair is a mistake
RECIPE = """\
name: small
description: four stages
stages:
- {name: cold, kind: sft, from: base}
- {name: reason, kind: rl, from: cold, steps: 4}
- {name: harvest, kind: reject, from: reason}
- {name: student, kind: distill, from: {make: tiny_llama}}
"""
SCORES = {
    "base": (0.031, 0.125),
    "cold": (0.211, 0.273),
    "reason": (0.588, 0.617),
    "student_student": (0.0, 0.012),
    "student": (0.491, 0.532),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of four stages."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for name, (strict, lenient) in SCORES.items():
        write(tmp_path / "evals" / f"{name}.json", {"accuracy": strict, "accuracy_se": 0.022, "lenient": lenient, "lenient_se": 0.017})
    rejected = {
        "reject/samples": 80.0,
        "reject/kept": 11.0,
        "reject/prompts_kept": 9.0,
        "reject/truncated": 48.0,
        "reject/below_min_reward": 21.0,
    }
    records = [
        stage(tmp_path, 1, "cold", "sft", "base", scored("base", "cold")),
        stage(tmp_path, 2, "reason", "rl", "cold", {**scored("cold", "reason"), "eval/pass_at_2": 0.663}),
        stage(tmp_path, 3, "harvest", "reject", "reason", rejected),
        stage(tmp_path, 4, "student", "distill", "tiny_llama", scored("student_student", "student")),
    ]
    write_lines(tmp_path / "01-cold" / "metrics.jsonl", [{"step": i, "loss/total": 2.5 / i} for i in (1, 2, 3)])
    write_lines(tmp_path / "02-reason" / "metrics.jsonl", [rl_metrics(step) for step in (1, 2, 3, 4)])
    write_lines(tmp_path / "02-reason" / "samples.jsonl", list(rl_samples(steps=4)))
    write(tmp_path / "summary.json", {"recipe": "small", "status": "complete", "stages": records})
    return tmp_path


def stage(folder: Path, number: int, name: str, kind: str, start: str, metrics: dict[str, float]) -> dict[str, Any]:
    output = f"{number:02d}-{name}/{'data' if kind == 'reject' else 'model'}"
    record = {
        "name": name,
        "kind": kind,
        "status": "complete",
        "seconds": 61.0 * number,
        "from": start,
        "output": output,
        "metrics": metrics,
    }
    write(folder / f"{number:02d}-{name}" / "stage.json", {**record, "fingerprint": "0", "identity": {}})
    return record


def scored(before: str, after: str) -> dict[str, float]:
    numbers = {"eval/accuracy_se": 0.022, "eval/lenient_se": 0.017, "eval/num_problems": 512}
    for suffix, model in (("before", before), ("after", after)):
        numbers |= {f"eval/accuracy_{suffix}": SCORES[model][0], f"eval/lenient_{suffix}": SCORES[model][1]}
    return numbers


def rl_metrics(step: int) -> dict[str, float]:
    names = ["reward/total", "reward/math", "reward/format", "rollout/completion_tokens", "rollout/well_formed_frac"]
    names += ["rollout/truncated_frac", "rollout/logprob_gap", "loss/kl", "policy/entropy", "time/rollout_s", "time/update_s"]
    names += ["loss/clipped_frac", "rollout/tokens_per_s", "train/grad_norm"]
    evaluated = {"eval/accuracy": 0.3 + step / 20, "eval/accuracy_se": 0.02, "eval/lenient": 0.4 + step / 20} if step % 2 == 0 else {}
    return {
        "step": step,
        **{name: (1 + i) * step / 50 for i, name in enumerate(names)},
        **evaluated,
        "time/step_s": 2.0,
        "reward/math_timeout": 1.0,
    }


def rl_samples(steps: int) -> Iterator[dict[str, Any]]:
    for step in range(1, steps + 1):
        for p in range(6):
            for g in range(4):
                yield {
                    "step": step,
                    "prompt_id": f"sums-{step}-{p}",
                    "prompt": f"Calculate {step} + {p}",
                    "answer": str(step + p),
                    "text": f"{NASTY} step {step} prompt {p} sample {g}",
                    "finish": "stop",
                    "completion_tokens": 33,
                    "reward": [0.2, 1.2, 0.7, None][g],
                    "parts": {"math": 0.5, "format": None},
                    "advantage": -1.25,
                    "version": step - 1,
                }


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def report(folder: Path) -> str:
    write_report(folder)
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Which elements, attributes and text a browser would see."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(re.sub(r"</?mark>", "", html))  # which only sets off a part of a text

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def figure_of(html: str, title: str) -> str:
    return next(figure for figure in re.findall(r"<figure>.*?</figure>", html, re.S) if f"<b>{title}" in figure)
