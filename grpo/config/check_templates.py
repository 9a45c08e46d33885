"""Checks a recipe's prompt template: it exists, is sound jinja, and uses the options that it is given."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo.config import MadeModel, PretrainedModel, Recipe
from grpo.config.problems import Finding, no_file, shown_path
from grpo.util.model_folder import local_folder
from grpo.util.text import listed, suggestion

TEMPLATES = ("r1_zero", "chat", "plain")
RENDERERS_OWN = frozenset(
    "messages tools documents add_generation_prompt continue_final_message bos_token eos_token pad_token unk_token raise_exception "
    "strftime_now range dict lipsum cycler joiner namespace loop".split()
)
"""Names that every chat template is given by the renderer or by jinja itself."""


def template_findings(recipe: Recipe, base: Path) -> Iterator[Finding]:
    """Yield what is wrong with the template and its options. ``base`` is the folder that relative paths refer to."""
    yield from _template(recipe.template, base)
    yield from _template_options(recipe, base)


def _template(template: str, base: Path) -> Iterator[Finding]:
    if template.endswith(".jinja"):
        path = base / template
        if not path.is_file():
            yield Finding(("template",), no_file(path))
        else:
            for text in template_mistakes(path.read_text(encoding="utf-8", errors="replace")):
                yield Finding(("template",), f"{shown_path(path)}:{text}")
    elif template not in TEMPLATES:
        text = f"unknown template {template!r}; templates are {listed(TEMPLATES)} or ./file.jinja{suggestion(template, TEMPLATES)}"
        yield Finding(("template",), text)


def _template_options(recipe: Recipe, base: Path) -> Iterator[Finding]:
    """Check that the template uses its options. The template of a model on the Hub is checked by the run."""
    if not recipe.template_options or recipe.template not in ("r1_zero", "plain", "chat") and not (base / recipe.template).is_file():
        return
    if recipe.template in ("r1_zero", "plain"):
        text = f"template {recipe.template!r} has no options; write template: chat or ./file.jinja, or delete template_options"
        yield Finding(("template_options",), text, (("template",),))
        return
    source = _chat_template(recipe.model, base) if recipe.template == "chat" else (base / recipe.template).read_text(errors="replace")
    if source is not None and not template_mistakes(source):
        for text in option_mistakes(recipe.template_options, source):
            yield Finding(("template_options",), text, (("template",),))


def _chat_template(model: str | MadeModel | PretrainedModel, base: Path) -> str | None:
    """Return the chat template of a model's folder, or None if there is no folder or it has several templates."""
    if isinstance(model, MadeModel):
        return None
    path = model if isinstance(model, str) else model.path
    if (folder := local_folder(path, base)) is None:
        return None
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    try:
        named = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError):
        return None
    return named if isinstance(named, str) else None


def option_mistakes(options: Mapping[str, Any], source: str | None) -> list[str]:
    """Return what is wrong with a template's options, one line each. ``source`` is the template, or None if there is none."""
    if not options:
        return []
    if source is None:
        return ["it has no options; use a chat template, or delete them"]
    from jinja2 import meta

    known = sorted(meta.find_undeclared_variables(_parsed_template(source)) - RENDERERS_OWN)
    mistakes = [f"{name!r} is given to every template by the toolkit itself; delete it" for name in options if name in RENDERERS_OWN]
    return mistakes + [
        f"the template never asks for {name!r}; it asks for {listed(known) if known else 'none'}{suggestion(name, known)}"
        for name in options
        if name not in known and name not in RENDERERS_OWN
    ]


def _parsed_template(source: str) -> Any:
    """Return the syntax tree of a template. Raises jinja2.TemplateSyntaxError."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    # {% generation %} marks the assistant's text for loss masks; transformers knows it, jinja does not
    return environment.parse(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source))


def template_mistakes(source: str) -> list[str]:
    """Return what is wrong with the text of a chat template, with lines: a syntax error, or access to Python internals."""
    from jinja2 import TemplateSyntaxError, nodes

    try:
        tree = _parsed_template(source)
    except TemplateSyntaxError as error:
        return [f"{error.lineno}: not a jinja template: {error.message}"]
    mistakes = []
    reached: list[tuple[int, Any]] = [(node.lineno, node.attr) for node in tree.find_all(nodes.Getattr)]
    reached += [(node.lineno, node.arg.value) for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)]
    for line, name in sorted(reached, key=lambda found: found[0]):
        if isinstance(name, str) and name.startswith("__"):
            mistakes.append(f"{line}: a template may not use {name}, which would escape from it; take what it needs from the messages")
    return mistakes
