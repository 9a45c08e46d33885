#!/usr/bin/env python3
"""Writes docs/recipe-keys.md and one page per section of a recipe from the schema. Run this after changing a key."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from grpo import config
from grpo.config.check_schema import describe
from grpo.config.schema.stages import StageBase

DOCS = Path(__file__).resolve().parent.parent / "docs"


class Section(NamedTuple):
    """A table of the keys of one model, below an example. ``about`` says what the model's docstring does not."""

    heading: str
    model: type[BaseModel]
    example: str
    about: str = ""


class Page(NamedTuple):
    name: str
    title: str
    sections: list[Section]


EXTENDING = """\
## Extending a recipe

```yaml
extends: r1_tiny                                 # a shipped recipe, or a file
name: mine
data: {sums: {rows: 2000}}
stages:
  - {name: reason, steps: 20}
  - {name: harvest, kind: null}
```

Mappings are merged key by key. A list replaces the list, except `stages`, which are merged by name. `null` removes a key, and
`{name: ..., kind: null}` removes a stage. A stage, a model or a source of another kind replaces the old one entirely. A relative path refers to
the folder of the file that it is written in. Overrides on the command line (`stages.reason.steps=20`, in quotes if it has brackets) are applied
last. `grpo plan` begins with the differences to the recipe that is extended.
"""
HEAD = """\
This page is written by `python scripts/write_recipe_keys.py` from the schema in [grpo/config/schema](../grpo/config/schema/__init__.py), and a
test holds it up to date. A key without a default is required."""
TRAINS = (
    "It also has the keys of [every stage](recipe-stages.md) and of [every stage that trains](recipe-stages.md#every-stage-that-trains)."
)

PAGES = [
    Page(
        "recipe-keys",
        "Every key of a recipe",
        [
            Section(
                "The recipe",
                config.Recipe,
                """\
                name: first_run
                model: Qwen/Qwen2.5-0.5B
                data:
                  sums: {reasoning_gym: chain_sum, rows: 2000}
                  heldout: {reasoning_gym: chain_sum, rows: 200, seed: 1}
                evaluation: {prompts: heldout}
                stages:
                  - {name: reason, kind: rl, prompts: sums, rewards: [{use: math}], steps: 100}
                """,
            )
        ],
    ),
    Page(
        "recipe-model",
        "Recipe keys: model and tags",
        [
            Section(
                "A pre-trained model",
                config.PretrainedModel,
                "model: {path: Qwen/Qwen2.5-1.5B}    # the same as model: Qwen/Qwen2.5-1.5B\n",
            ),
            Section(
                "A tiny model", config.MadeModel, "model: {make: tiny_qwen2, problems: sums, hidden_size: 128, pretrain_updates: 200}\n"
            ),
            Section("tags", config.Tags, "tags: {think: reasoning, answer: final}    # <reasoning>...</reasoning> <final>...</final>\n"),
        ],
    ),
    Page(
        "recipe-data",
        "Recipe keys: data",
        [
            Section(
                "A data source",
                config.DataSource,
                """\
                data:
                  sums: {reasoning_gym: chain_sum, settings: {min_terms: 2, max_terms: 3}, rows: 2000}
                  gsm8k: {hub: openai/gsm8k, subset: main, split: train, disjoint_from: [mine]}
                  mine: {jsonl: ./rows.jsonl, columns: {prompt: problem, answer: solution}}
                """,
                "[data.md](data.md) explains formats, columns and renaming.",
            ),
            Section(
                "filters of a source",
                config.Filters,
                "data:\n  gsm8k: {hub: openai/gsm8k, filters: {max_prompt_tokens: 512, duplicates: near, decontaminate: true}}\n",
            ),
            Section(
                "A mixture of sources",
                config.Weighted,
                "stages:\n  - {name: mixed, kind: sft, data: [{use: sums, weight: 3}, {use: gsm8k, weight: 1}]}\n",
                "The keys `data` and `prompts` of a stage name one source, a list of sources, or a list of sources with weights.",
            ),
        ],
    ),
    Page(
        "recipe-rewards",
        "Recipe keys: rewards and evaluation",
        [
            Section(
                "rewards: one of the list",
                config.RewardUse,
                """\
                stages:
                  - name: reason
                    kind: rl
                    prompts: sums
                    steps: 100
                    rewards:
                      - {use: math}
                      - {use: format, weight: [[0, 0.5], [50, 0.1]]}
                      - {use: ./mine.py:brevity, name: brevity, on_error: stop}
                """,
                "[rewards.md](rewards.md) lists the shipped rewards and their settings.",
            ),
            Section("evaluation", config.Evaluation, "evaluation: {prompts: heldout, rows: 200, samples_per_prompt: 4, pass_at: [1, 4]}\n"),
        ],
    ),
    Page(
        "recipe-rollout",
        "Recipe keys: rollout",
        [
            Section(
                "rollout",
                config.Rollout,
                "rollout: {engine: vllm, workers: 2, gpu_memory_frac: 0.8}\n",
                "[rollouts.md](rollouts.md) explains how workers generate, fail and take new weights.",
            )
        ],
    ),
    Page(
        "recipe-trainer",
        "Recipe keys: trainer and hardware",
        [
            Section("trainer", config.Trainer, "trainer: {ranks: 4, shard: gradients}\n"),
            Section("hardware", config.Hardware, "hardware: {nodes: 1, gpus: 4, gpu_memory_gib: 80}\n"),
        ],
    ),
    Page(
        "recipe-stages",
        "Recipe keys: stages",
        [
            Section(
                "Every stage",
                StageBase,
                "stages:\n  - {name: cold_start, kind: sft, seed: 7, data: sums}\n  - {name: harder, kind: sft, from: cold_start, data: gsm8k}\n",
                "The keys of each kind are on a page of their own: [sft](recipe-sft.md), [rl](recipe-rl.md), [reject](recipe-reject.md), "
                "[distill](recipe-distill.md) and [eval](recipe-eval.md).",
            ),
            Section(
                "Every stage that trains",
                config.OptimizerKeys,
                """\
                stages:
                  - {name: cold_start, kind: sft, data: sums, learning_rate: 1.0e-5, warmup_updates: 10, lr_schedule: cosine}
                """,
                "These are the keys of stages of kind sft, rl and distill.",
            ),
            Section("lora", config.Lora, "stages:\n  - {name: cold_start, kind: sft, data: sums, lora: {rank: 32, alpha: 64}}\n"),
        ],
    ),
    Page(
        "recipe-sft",
        "Recipe keys: stages of kind sft",
        [
            Section("kind: sft", config.SftStage, "stages:\n  - {name: cold_start, kind: sft, from: base, data: [sums, gsm8k]}\n", TRAINS),
            Section(
                "Batches and epochs",
                config.SupervisedKeys,
                "stages:\n  - {name: cold_start, kind: sft, data: sums, epochs: 2, batch_size: 64, max_tokens: 2048}\n",
                "A stage of kind distill has the same keys. [cold-start.md](cold-start.md) says when the last five help.",
            ),
            Section(
                "curriculum",
                config.SupervisedCurriculum,
                """\
                stages:
                  - name: cold_start
                    kind: sft
                    data: sums
                    curriculum:
                      by: pass_rate
                      phases:
                        - {updates: 20, mix: {easy: 1}, learning_rate_frac: 0.1}
                        - {updates: 80, mix: {easy: 1, medium: 2, hard: 2}}
                """,
            ),
            Section(
                "phases of a curriculum",
                config.SupervisedPhase,
                """\
                stages:
                  - {name: cold_start, kind: sft, data: sums, curriculum: {phases: [{updates: 20, batch_size: 8}, {updates: 80}]}}
                """,
            ),
            Section(
                "mix of a phase",
                config.Thirds,
                """\
                stages:
                  - {name: cold_start, kind: sft, data: sums, curriculum: {phases: [{updates: 20, mix: {easy: 3, medium: 1}}]}}
                """,
            ),
            Section(
                "validation",
                config.Validation,
                "stages:\n  - {name: cold_start, kind: sft, data: sums, validation: {every: 50, by: loss, rows: 128}}\n",
            ),
            Section(
                "ewc",
                config.Ewc,
                """\
                stages:
                  - {name: first, kind: sft, data: sums}
                  - {name: second, kind: sft, from: first, data: gsm8k, ewc: {coef: 100}}
                """,
            ),
        ],
    ),
    Page(
        "recipe-rl",
        "Recipe keys: stages of kind rl",
        [
            Section(
                "kind: rl",
                config.RlStage,
                """\
                stages:
                  - name: reason
                    kind: rl
                    from: base
                    prompts: sums
                    algorithm: grpo
                    rewards: [{use: math}, {use: format, weight: 0.2}]
                    steps: 100
                    prompts_per_step: 16
                    samples_per_prompt: 8
                    max_completion_tokens: 1024
                """,
                TRAINS,
            ),
            Section(
                "curriculum",
                config.Curriculum,
                """\
                stages:
                  - name: reason
                    kind: rl
                    prompts: sums
                    rewards: [{use: math}]
                    steps: 100
                    curriculum: {by: pass_rate, phases: [{from_step: 0, easiest_frac: 0.3}, {from_step: 40, easiest_frac: 1.0}]}
                """,
            ),
            Section(
                "phases of a curriculum",
                config.Phase,
                """\
                stages:
                  - name: reason
                    kind: rl
                    prompts: sums
                    rewards: [{use: math}]
                    steps: 100
                    curriculum: {phases: [{from_step: 0, easiest_frac: 0.5}]}
                """,
            ),
            Section(
                "dynamic_sampling",
                config.DynamicSampling,
                """\
                stages:
                  - {name: reason, kind: rl, prompts: sums, rewards: [{use: math}], steps: 100, dynamic_sampling: {max_rounds: 2}}
                """,
            ),
        ],
    ),
    Page(
        "recipe-reject",
        "Recipe keys: stages of kind reject",
        [
            Section(
                "kind: reject",
                config.RejectStage,
                "stages:\n  - {name: harvest, kind: reject, from: base, prompts: sums, rewards: [{use: math}], rows: 500}\n",
                "It also has the keys of [every stage](recipe-stages.md).",
            ),
            Section(
                "Sampling",
                config.SamplingKeys,
                """\
                stages:
                  - {name: harvest, kind: reject, prompts: sums, rewards: [{use: math}], samples_per_prompt: 4, temperature: 0.8}
                """,
                "A stage of kind distill has the same keys.",
            ),
            Section(
                "keep",
                config.Keep,
                """\
                stages:
                  - name: harvest
                    kind: reject
                    prompts: sums
                    rewards: [{use: math}, {use: format}]
                    keep: {min_reward: {math: 1, format: 1}, per_prompt: 2, language: null}
                """,
            ),
            Section(
                "mix: one of the list",
                config.Mix,
                """\
                stages:
                  - {name: harvest, kind: reject, prompts: sums, rewards: [{use: math}], mix: [{use: gsm8k, rows: 200}]}
                """,
            ),
        ],
    ),
    Page(
        "recipe-distill",
        "Recipe keys: stages of kind distill",
        [
            Section(
                "kind: distill",
                config.DistillStage,
                """\
                stages:
                  - name: student
                    kind: distill
                    from: {path: Qwen/Qwen2.5-0.5B}
                    teacher: base
                    prompts: sums
                    rewards: [{use: math}]
                    learning_rate: 1.0e-5
                """,
                f"{TRAINS} From [sft](recipe-sft.md) it has batches, epochs and what follows, and from [reject](recipe-reject.md) sampling and keep.",
            )
        ],
    ),
    Page(
        "recipe-eval",
        "Recipe keys: stages of kind eval",
        [
            Section(
                "kind: eval",
                config.EvalStage,
                """\
                stages:
                  - {name: measure, kind: eval, from: base, evaluation: {prompts: heldout, samples_per_prompt: 8, pass_at: [1, 8]}}
                """,
                "It also has the keys of [every stage](recipe-stages.md).",
            )
        ],
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the pages of recipe keys.")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pages (default: docs)")
    args = parser.parse_args()
    for name, text in pages().items():
        (args.out / name).write_text(text, encoding="utf-8")
        print(f"{args.out / name}: written")


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    return {f"{page.name}.md": _page(page) for page in PAGES}


def _page(page: Page) -> str:
    parts = [f"# {page.title}", HEAD]
    if page.name == "recipe-keys":
        parts += ["`grpo schema` prints the same for editors ([commands.md](commands.md#grpo-schema)). Each section has a page of its own:"]
        parts += ["\n".join(f"- [{other.title.partition(': ')[2]}]({other.name}.md)" for other in PAGES[1:])]
    parts += [_section(section) for section in page.sections]
    parts += [EXTENDING.strip()] if page.name == "recipe-keys" else []
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    about = " ".join([*(section.model.__doc__ or "").split(), *section.about.split()])
    rows = [
        f"| `{key}` | {_type(field)} | {_default(field)} | {_cell(field.description or '')} |" for key, field in own_keys(section.model)
    ]
    table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
    return f"## {section.heading}\n\n{about}\n\n```yaml\n{example_of(section)}```\n\n{table}"


def example_of(section: Section) -> str:
    """Return the example without the indentation that it has in this file."""
    lines = section.example.splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "".join(f"{line[indent:]}\n" for line in lines if line.strip())


def own_keys(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the keys of a model without those that it has from another model with a table of its own."""
    tabled = {section.model for page in PAGES for section in page.sections} - {model}
    inherited = {name for base in model.__mro__ if base in tabled for name in base.model_fields}
    for name, field in model.model_fields.items():
        if name not in inherited or name in model.__annotations__:
            yield field.alias or name, field


def _type(field: FieldInfo) -> str:
    return _cell(describe(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return f"`{value}`" if value else "its own defaults"
    if value is None or value in ("", {}, []):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
