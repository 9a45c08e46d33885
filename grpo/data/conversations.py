"""Which tokens does a row to imitate teach? Of text the completion and an end token, of a conversation what the assistant says in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grpo.data.templates import Template
from grpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK_TWICE = "began with the opening tag that the template writes already"
END_TWICE = "ended with the end token that is appended anyway"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Imitated:
    """A row in tokens. ``learned``: which of the completion's are targets. ``mended``: what was taken away from it because it stood there twice."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    learned: tuple[bool, ...]
    mended: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.completion)


def imitated(row: Mapping[str, Any], template: Template, tokenizer: PreTrainedTokenizerBase) -> Imitated:
    """Tokens of a row with a prompt and a completion, each text or a list of messages. Raises DataError where the template does not fit it."""
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token, so a model trained with it would never stop; set eos_token in the model's folder")
    if isinstance(row["completion"], list):
        return _conversation(row, template, tokenizer)
    prompt = template.prompt(row, "", tokenizer)
    text, mended = str(row["completion"]), []
    opening = f"<{template.tags.think}>"
    if prompt.prefill and text.lstrip().startswith(opening):
        text = text.lstrip().removeprefix(opening)
        text = text.removeprefix("\n") if prompt.prefill.endswith("\n") else text
        mended.append(THINK_TWICE)
    if text.rstrip().endswith(str(tokenizer.eos_token)):
        text = text.rstrip()
    ids = tokenizer.encode(text, add_special_tokens=False)
    if ids[-1:] == [tokenizer.eos_token_id]:
        mended.append(END_TWICE)
    else:
        ids.append(tokenizer.eos_token_id)
    return Imitated(prompt.tokens, tuple(ids), (True,) * len(ids), tuple(mended))


def _conversation(row: Mapping[str, Any], template: Template, tokenizer: PreTrainedTokenizerBase) -> Imitated:
    """Of the assistant's turns in the completion every token with its end-of-turn token; of all other turns, and of those in the prompt, none."""
    if not template.is_chat:
        raise DataError(f"template {template.name!r} takes text, and this row is a conversation; write template: chat or ./file.jinja")
    history = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    messages = [*history, *row["completion"]]
    tools = row["tools"] if isinstance(row.get("tools"), list) and row["tools"] else None
    if GENERATION.search(template.source(tokenizer)):
        ids, learned = _marked(history, messages, template, tokenizer, tools)
    else:
        ids, learned = _by_turns(history, messages, template, tokenizer, tools)
    if True not in learned[1:]:
        raise DataError(f"template {template.name!r}: nothing of this conversation is the assistant's: {messages!r:.200}")
    first, last = max(1, learned.index(True)), len(learned) - learned[::-1].index(True)
    return Imitated(tuple(ids[:first]), tuple(ids[first:last]), tuple(learned[first:last]))


def _marked(
    history: list[Any], messages: list[Any], template: Template, tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None
) -> tuple[list[int], list[bool]]:
    """By the template's own ``{% generation %}``."""

    def rendered(turns: list[Any]) -> tuple[list[int], list[bool]]:
        template.rendered(turns, tokenizer, is_open=False, tools=tools)  # says why where it cannot be
        found = tokenizer.apply_chat_template(
            turns,
            chat_template=template.source(tokenizer),
            tools=tools,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **template.options,
        )
        return list(found["input_ids"]), [bool(mark) for mark in found["assistant_masks"]]

    ids, learned = rendered(messages)
    if any(message["role"] == "assistant" for message in history):
        before, marked = rendered(history)
        if ids[: len(before)] != before:
            raise _refusal(template, "writes the turns before the completion otherwise once the completion follows")
        learned = [False] * len(marked) + learned[len(marked) :]
    return ids, learned


def _by_turns(
    history: list[Any], messages: list[Any], template: Template, tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None
) -> tuple[list[int], list[bool]]:
    """By rendering the conversation up to each of the assistant's turns, and up to its end: each must be the beginning of the whole."""
    whole = template.rendered(messages, tokenizer, is_open=False, tools=tools)
    ids: list[int] = []
    learned: list[bool] = []
    at = 0
    for number in range(len(history), len(messages)):
        if messages[number]["role"] != "assistant":
            continue
        before = template.rendered(messages[:number], tokenizer, is_open=True, tools=tools)
        after = template.rendered(messages[: number + 1], tokenizer, is_open=False, tools=tools)
        said = after[len(before) :]
        if not after.startswith(before):
            raise _refusal(template, "begins a turn for the model otherwise than it writes one that is over")
        if (messages[number].get("content") or "").strip() not in said:
            raise _refusal(template, "leaves out part of what the assistant said")
        if not whole.startswith(after):
            raise _refusal(template, "writes an earlier turn otherwise once others follow, such as without its thinking")
        between = tokenizer.encode(whole[at : len(before)], add_special_tokens=False)
        turn = tokenizer.encode(said, add_special_tokens=False)
        end = _end_of_turn(turn, template, tokenizer)
        if end is None and number == len(messages) - 1:
            turn, end = [*turn, tokenizer.eos_token_id], len(turn) + 1
        end = len(turn) if end is None else end
        ids += [*between, *turn]
        learned += [*(False for _ in between), *(index < end for index in range(len(turn)))]
        at = len(after)
    return ids, learned


def _end_of_turn(turn: Sequence[int], template: Template, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The number of tokens up to and including the special token that ends a turn; None where no special token does."""
    special = {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special and token.content not in template.tags.texts
    }
    ends = {*special, tokenizer.eos_token_id}
    for number in range(len(turn), 0, -1):
        if turn[number - 1] in ends:
            return number
        if tokenizer.decode([turn[number - 1]]).strip():
            return None
    return None


def _refusal(template: Template, why: str) -> DataError:
    return DataError(
        f"template {template.name!r} {why}, so which tokens are the assistant's cannot be told; "
        "mark them in the template with {% generation %}, or write rows of a prompt and a completion as text"
    )


def beyond_positions(lengths: Sequence[int], positions: int | None) -> str | None:
    """What is wrong with rows of so many tokens for a model of ``positions``, and what to do; None where nothing is."""
    longest = max(lengths, default=0)
    if positions is None or longest <= positions:
        return None
    number = sum(length > positions for length in lengths)
    return (
        f"{number:,} of {len(lengths):,} rows are longer than the model's {positions:,} positions, the longest has {longest:,} tokens\n"
        f"  set max_tokens: {positions}, which leaves them out, or take a model with longer context"
    )


def mended_in_words(counts: Mapping[str, int]) -> Iterator[str]:
    """One line for each way in which rows were mended."""
    for how, number in counts.items():
        one = number == 1
        yield f"{number:,} completion{'' if one else 's'} {how}; {'it is' if one else 'they are'} learned with one"
