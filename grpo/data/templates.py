"""How does a question become the text that the model continues?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.config import Recipe, Tags
from grpo.errors import DataError
from rollout.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# DeepSeek-R1 (arXiv:2501.12948), table 1, with the tags' names as settings.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first thinks about the "
    "reasoning process in the mind and then provides the user with the answer. The reasoning process and answer are enclosed within "
    "<{think}> </{think}> and <{answer}> </{answer}> tags, respectively, i.e., <{think}> reasoning process here </{think}> "
    "<{answer}> answer here </{answer}>. User: {question}. Assistant:"
)
PLAIN = "{question}"


@dataclass(frozen=True)
class Template:
    """Turns a row into token ids. ``name`` is r1_zero, plain, chat (the tokenizer's own), or the path of a jinja file, which gets ``options``."""

    name: str
    tags: Tags = Tags()
    base: Path = Path(".")
    options: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(recipe: Recipe, base: Path) -> Template:
        return Template(recipe.template, recipe.tags, base, recipe.template_options)

    def text(self, question: Any, tokenizer: PreTrainedTokenizerBase, tools: Any = None) -> str:
        """The rendered prompt. ``question`` is a string, or a list of {"role", "content"} messages for chat templates."""
        if self.is_chat:
            messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
            return self.rendered(messages, tokenizer, tools=tools)
        if not isinstance(question, str):
            raise DataError(f"template {self.name!r} takes a string as prompt, found a {type(question).__name__}; use template: chat")
        pattern = R1_ZERO.replace("{think}", self.tags.think).replace("{answer}", self.tags.answer) if self.name == "r1_zero" else PLAIN
        return pattern.replace("{question}", question)

    @property
    def is_chat(self) -> bool:
        """Is it written in jinja, over messages?"""
        return self.name == "chat" or self.name.endswith(".jinja")

    def rendered(self, messages: list[Any], tokenizer: PreTrainedTokenizerBase, is_open: bool = True, tools: Any = None) -> str:
        """The messages as text, and where ``is_open`` the beginning of the assistant's turn. ``tools`` are functions that it may call.

        transformers renders in jinja's immutable sandbox, out of which a template reaches nothing. Raises DataError where it refuses.
        """
        chat_template = self.source(tokenizer)
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages,
                    tools=tools,
                    chat_template=chat_template,
                    tokenize=False,
                    add_generation_prompt=is_open,
                    **self.options,
                )
            )
        except Exception as error:  # jinja's, the sandbox's, and whatever Python raises for a template's own mistakes
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(f"template {self.name!r} cannot render {messages!r:.200}: {said}") from error

    def source(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The chat template's own text. Raises DataError where the tokenizer has none."""
        if self.name != "chat":
            return (self.base / self.name).read_text(encoding="utf-8")
        if not tokenizer.chat_template:
            raise DataError("template 'chat': this model's tokenizer has no chat template; set template: r1_zero, plain or ./file.jinja")
        return str(tokenizer.get_chat_template())

    def prompt(self, row: Mapping[str, Any], row_id: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """The row as a Prompt. A chat template writes all there is; before another's text stands what the tokenizer puts first by itself."""
        tools = row.get("tools")
        text = self.text(row["prompt"], tokenizer, tools if isinstance(tools, list) and tools else None)
        opening = f"<{self.tags.think}>"
        prefill = text[text.rindex(opening) :] if self.name not in ("r1_zero", "plain") and text.rstrip().endswith(opening) else ""
        tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
        first = () if self.is_chat else first_ids(tokenizer)
        return Prompt(row_id, tokens if tokens[: len(first)] == first else first + tokens, row, prefill)


def first_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts before every text by itself, such as its BOS token; nothing for most."""
    whole, bare = (tuple(tokenizer.encode("a", add_special_tokens=special)) for special in (True, False))
    return next((whole[:at] for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), ())
