"""Does a template fit its tokenizer? Looked into once, when both are first there, before anything is sampled or trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from grpo.config.check_templates import option_mistakes
from grpo.data.templates import Template, first_ids
from grpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER, THOUGHT = "What is 3 + 4?", "It is seven.", "three and four"


def template_warnings(template: Template, tokenizer: PreTrainedTokenizerBase, stops_at: Collection[int] = ()) -> list[str]:
    """What somebody who trains with this template should know, one sentence each. Raises DataError where it cannot be used at all.

    ``stops_at``: ids at which the model's own configuration stops generating; empty where it says nothing.
    """
    if mistakes := option_mistakes(template.options, template.source(tokenizer) if template.is_chat else None):
        raise DataError("\n".join(f"template_options of template {template.name!r}: {mistake}" for mistake in mistakes))
    prompt = template.text(QUESTION, tokenizer)
    if QUESTION not in prompt:
        raise DataError(f"template {template.name!r} leaves the question out of the prompt: {prompt!r:.200}; write it with its content")
    if not tokenizer.encode(prompt, add_special_tokens=False):
        raise DataError(f"template {template.name!r}: the tokenizer makes no tokens of the prompt {prompt!r:.200}")
    return [
        *_beginning(template, prompt, tokenizer),
        *_end(tokenizer, stops_at),
        *_boundary(template, prompt, tokenizer),
        *_chat(template, prompt, tokenizer),
    ]


def _beginning(template: Template, prompt: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What the tokenizer puts before a text by itself, which a model that was trained with it needs."""
    first = first_ids(tokenizer)
    if not first:
        return
    name = "".join(tokenizer.convert_ids_to_tokens(list(first)))
    if not template.is_chat:
        yield f"the tokenizer puts {name!r} before every text, so every prompt begins with it"
    elif tuple(tokenizer.encode(prompt, add_special_tokens=False)[: len(first)]) != first:
        yield f"the tokenizer puts {name!r} before a text, and the chat template writes none, so prompts have none; write it in the template"


def _end(tokenizer: PreTrainedTokenizerBase, stops_at: Collection[int]) -> Iterator[str]:
    """The end token is one token, and the one at which generation stops. (A padding token is not needed, and may be the same.)"""
    end = tokenizer.eos_token_id
    if end is None:
        yield "the tokenizer has no end token: sft cannot teach to stop, and samples end at max_completion_tokens or stop: only; set eos_token"
        return
    if (written := tokenizer.encode(tokenizer.eos_token, add_special_tokens=False)) != [end]:
        yield f"the end token {tokenizer.eos_token!r} has id {end}, but as text it becomes {written}; add it to the tokenizer as a special token"
    if stops_at and end not in stops_at:
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(stop)!r}" for stop in stops_at)
        yield (
            f"the model's configuration stops at {names}, and not at the tokenizer's end token {tokenizer.eos_token!r}, which is what sft teaches; "
            "here samples stop at both, elsewhere the trained model may run on: make eos_token_id the same"
        )


def _boundary(template: Template, prompt: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Prompt and completion are tokenised apart, here and by every engine; where they meet, text tokenised as a whole may be cut otherwise."""
    prefill = _prefill(template, tokenizer)
    think = template.tags.think
    opening = "" if prefill else f"<{think}>"
    moved = []
    for completion in (f"{opening} so", f" {opening} so", f"\n{opening}\nso", " seven", "seven"):
        together = tokenizer.encode(prompt + completion, add_special_tokens=False)
        apart = [*tokenizer.encode(prompt, add_special_tokens=False), *tokenizer.encode(completion, add_special_tokens=False)]
        if together != apart:
            moved.append(completion)
    if moved:
        yield (
            f"where the prompt ends ({prompt[-12:]!r}), completions that begin with {', '.join(map(repr, moved))} are cut into other tokens than in "
            "one text with it, so rows that begin so teach tokens the model seldom sees there; begin them otherwise, or end the template otherwise"
        )


def _chat(template: Template, prompt: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What a chat template does to turns that are over."""
    if not template.is_chat:
        return
    tag = template.tags.think
    if prompt.rstrip().endswith(f"</{tag}>"):
        yield f"the template closes <{tag}> before the model begins, so it is asked not to think"
    elif _prefill(template, tokenizer):
        yield f"the template opens <{tag}> itself: completions begin inside it, and rewards are told so"
    user = {"role": "user", "content": QUESTION}
    try:
        finished = template.rendered([user, {"role": "assistant", "content": ANSWER}], tokenizer, is_open=False)
        third = template.rendered(
            [user, {"role": "assistant", "content": f"<{tag}>{THOUGHT}</{tag}>{ANSWER}"}, user], tokenizer, is_open=False
        )
    except DataError as error:
        yield f"the template takes no turn of the assistant ({error}); prompts of several turns cannot be rendered"
        return
    if ANSWER not in finished:
        yield "the template leaves out what the assistant said in earlier turns"
        return
    if THOUGHT not in third:
        yield "the template drops the thinking of earlier turns; a single turn is not concerned"
    open_turn = prompt.rstrip().removesuffix(f"<{tag}>").rstrip()
    if not finished.startswith(open_turn):
        yield (
            f"the template writes a turn that is over otherwise than one that begins (after {_common(finished, prompt)[-20:]!r}), so what is learned "
            "from single turns is not what it shows of conversations"
        )
    ending = tokenizer.encode(finished[finished.rindex(ANSWER) + len(ANSWER) :].lstrip(), add_special_tokens=False)
    end = tokenizer.eos_token_id
    if end is not None and ending[:1] != [end]:
        how = f"ends a turn with {tokenizer.decode(ending[:1])!r}" if ending else "writes nothing at the end of a turn"
        yield f"the template {how}, and the tokenizer's end token is {tokenizer.eos_token!r}: that is what sft teaches and samples stop at"


def _prefill(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    return template.prompt({"prompt": QUESTION}, "", tokenizer).prefill


def _common(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
