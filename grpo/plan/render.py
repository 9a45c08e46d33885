"""How is a plan told? As one JSON object, whose keys only ever grow, and as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from grpo.plan.duration import Costs, in_words
from grpo.plan.plan import Needs, Outline

if TYPE_CHECKING:
    from grpo.plan.memory import Holding, StageMemory

GIB = 2**30
SHOWN_CHARACTERS = 400  # of a prompt


def as_json(plan: Outline, needed: Needs | None) -> dict[str, Any]:
    """Sizes in bytes, times in seconds; null for what is not known. ``fits`` is null where nobody reckoned (--quick)."""
    return {
        "recipe": plan.recipe.name,
        "out": str(plan.out),
        "changes": _changes(plan),
        "hardware": {**asdict(plan.site), "gpus_of_a_node": plan.site.gpus_of_a_node},
        "stages": [_stage(plan, number, needed) for number in range(len(plan.stages))],
        "rows": [asdict(source) for source in plan.rows],
        "prompts": [asdict(prompt) for prompt in plan.prompts],
        "contacts": [asdict(contact) for contact in needed.contacts] if needed else None,
        "rates": asdict(needed.rates) if needed and needed.rates else None,
        "unknown": list(needed.unknown) if needed else None,
        "problems": list(needed.problems) if needed else None,
        "gold_answers": asdict(needed.trial) if needed else None,
        "fits": not needed.problems if needed else None,
    }


def _changes(plan: Outline) -> dict[str, Any] | None:
    if plan.changes is None:
        return None
    return {"of": plan.changes.of, "settings": [{"key": key, "was": was, "is": now} for key, was, now in plan.changes.settings]}


def _stage(plan: Outline, number: int, needed: Needs | None) -> dict[str, Any]:
    planned = plan.stages[number]
    name, model = planned.stage.name, plan.architectures[planned.stage.name]
    memory = needed.memory.get(name) if needed else None
    seconds = needed.seconds.get(name) if needed else None
    return {
        "stage": name,
        "kind": planned.stage.kind,
        "from": planned.start,
        "inputs": list(planned.inputs),
        "makes": planned.makes,
        "sizes": planned.sizes,
        "done": planned.is_done,
        "model": {"ref": model.ref, "known_from": model.known_from},
        "parameters": memory.parameters if memory else None,
        "trained_parameters": memory.trained if memory else None,
        "tokens_per_pass": memory.tokens_per_pass if memory else None,
        "memory": [{**asdict(holding), "needed": holding.needed, "fits": holding.fits} for holding in memory.holdings] if memory else None,
        "disk": [asdict(item) for item in needed.disk[name]] if needed else None,
        "seconds": {**asdict(seconds), "total": seconds.total} if seconds else None,
    }


# --- For a person ---------------------------------------------------------------------------------

Section = tuple[str, list[str], list[list[str]]]  # title, header, rows


def outline_sections(plan: Outline) -> Iterator[Section]:
    """What is known before torch is loaded."""
    if plan.changes is not None:
        rows = [[key, _value(was), _value(now)] for key, was, now in plan.changes.settings]
        yield f"{plan.recipe.name}: what differs from {plan.changes.of}", ["setting", "there", "here"], rows
    rows = [
        [str(p.number), p.stage.name, p.stage.kind, p.start, p.makes, p.sizes, "done before, skipped" if p.is_done else "to run"]
        for p in plan.stages
    ]
    title = f"{plan.recipe.name}: {len(rows)} stage{'s' if len(rows) > 1 else ''}, into {plan.out}"
    yield title, ["", "stage", "kind", "from", "makes", "size", ""], rows
    yield (
        "rows",
        ["source", "kind", "kept", "left out", ""],
        [
            [
                r.source,
                r.kind,
                "not looked at" if r.rows is None else f"{r.rows:,}",
                r.left_out,
                "; ".join(["held out"] * r.is_held_out + [r.note] * bool(r.note)),
            ]
            for r in plan.rows
        ],
    )
    if plan.prompts:
        yield (
            "the first prompts, as the model gets them",
            ["source", "tokens", "prompt"],
            [[p.source, "?" if p.num_tokens is None else str(p.num_tokens), _shortened(p.text)] for p in plan.prompts],
        )


def needs_sections(plan: Outline, needed: Needs) -> Iterator[Section]:
    yield f"memory, on {plan.site.in_words()}", ["stage", "one", "on", "holds", "of", "made of", ""], list(_memory_rows(plan, needed))
    yield "disk", ["stage", "size", "of"], list(_disk_rows(needed))
    if needed.seconds:
        how = "measured on this machine" if isinstance(needed.rates, Costs) else "by the rates that hardware: states"
        rows = [[name, *map(in_words, (s.drawing, s.evaluation, s.training, s.total))] for name, s in needed.seconds.items()]
        yield (
            f"time, {how}, with sequences of the lengths given (--lengths), or the longest allowed",
            ["stage", "drawing", "evaluation", "training", "total"],
            rows,
        )
    yield "what it opens, fetches and executes", ["", ""], [[contact.kind, contact.text] for contact in needed.contacts]
    if needed.trial.refused:
        yield "gold answers that no sample can match", [""], [[text] for text in needed.trial.refused]
    if needed.unknown:
        yield "not known", [""], [[text] for text in needed.unknown]


def _memory_rows(plan: Outline, needed: Needs) -> Iterator[list[str]]:
    """Stages in which a process holds the same share a row."""
    stages: dict[tuple[str, ...], list[str]] = {}
    for name, memory in needed.memory.items():
        for holding in memory.holdings:
            sizes = (_size(holding.needed), _size(max(0, holding.available)))
            remark = _remark(plan, memory) if holding.who == "trainer rank" else ""
            row: tuple[str, ...] = (holding.who, holding.where, *sizes, _made_of(holding), holding.remark + remark)
            stages.setdefault(row, []).append(name)
    for row, names in stages.items():
        yield [", ".join(names) if len(names) < len(needed.memory) or len(names) == 1 else "all", *row]


def _remark(plan: Outline, memory: StageMemory) -> str:
    trainer = plan.recipe.trainer
    adapters = (
        f"; {memory.trained / 1e6:.1f}M of {memory.parameters / 1e6:,.0f}M weights are trained"
        if memory.trained < memory.parameters
        else ""
    )
    return adapters + (f"; {trainer.shard} shared out over {trainer.ranks} ranks" if trainer.shard != "none" else "")


def _disk_rows(needed: Needs) -> Iterator[list[str]]:
    for name, items in needed.disk.items():
        for item in items:
            yield [
                name,
                f"{'at most ' if item.is_bound else ''}{_size(item.size)}",
                item.what + " (until the stage is done)" * item.is_passing,
            ]


def _made_of(holding: Holding) -> str:
    return ", ".join(f"{part.replace('_', ' ')} {_size(size)}" for part, size in holding.parts.items() if size >= 2**20)


def _size(size: float) -> str:
    """In the unit that a person would use."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def _shortened(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


def _value(value: Any) -> str:
    return str(value) if not isinstance(value, Mapping) else "{}"
