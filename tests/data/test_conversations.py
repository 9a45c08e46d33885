"""What a row to imitate teaches: the completion and one end token; of a conversation, what the assistant says in it and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from grpo.config import Tags
from grpo.data.conversations import END_TWICE, THINK_TWICE, Imitated, imitated, mended_in_words
from grpo.data.templates import Template
from grpo.errors import DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
MARKED = CHATML.replace(
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n",
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}\n",
)
USER, ASSISTANT = ({"role": role, "content": content} for role, content in (("user", "Why?"), ("assistant", "Because.")))
TALK = [USER, ASSISTANT, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So <think>it</think> is."}]


@pytest.fixture
def chat(tokenizer: Any) -> Any:
    def make(source: str) -> Any:
        mine = copy.deepcopy(tokenizer)
        mine.chat_template = source
        return mine

    return make


def learned_text(found: Imitated, tokenizer: Any) -> list[str]:
    """The stretches of tokens that are targets, as text."""
    stretches: list[list[int]] = [[]]
    for token, is_learned in zip(found.completion, found.learned, strict=True):
        if is_learned:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


@pytest.mark.parametrize("source", [CHATML, MARKED], ids=["by turns", "by the template's own marks"])
def test_every_turn_of_the_assistant_is_learned_with_its_end_and_nothing_else(chat: Any, source: str) -> None:
    tokenizer = chat(source)
    found = imitated({"prompt": TALK[:1], "completion": TALK[1:]}, Template("chat"), tokenizer)
    assert learned_text(found, tokenizer) == ["Because.<|end|>", "So <think>it</think> is.<|end|>"]
    whole = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert tokenizer.decode([*found.prompt, *found.completion]) == whole.rstrip("\n")
    assert (found.learned[0], found.learned[-1]) == (True, True)


@pytest.mark.parametrize("source", [CHATML, MARKED])
def test_what_the_assistant_said_in_the_prompt_is_not_learned(chat: Any, source: str) -> None:
    tokenizer = chat(source)
    found = imitated({"prompt": TALK[:3], "completion": TALK[3:]}, Template("chat"), tokenizer)
    assert learned_text(found, tokenizer) == ["So <think>it</think> is.<|end|>"]
    assert tokenizer.decode(found.prompt) == tokenizer.apply_chat_template(TALK[:3], tokenize=False, add_generation_prompt=True)


def test_a_conversation_of_one_turn_is_the_row_that_it_would_be_as_text(chat: Any) -> None:
    tokenizer = chat(CHATML)
    as_messages = imitated({"prompt": [USER], "completion": [ASSISTANT]}, Template("chat"), tokenizer)
    assert as_messages == imitated({"prompt": "Why?", "completion": "Because."}, Template("chat"), tokenizer)
    assert as_messages == imitated({"prompt": "Why?", "completion": [ASSISTANT]}, Template("chat"), tokenizer)


def test_tool_calls_and_their_results_are_rendered_and_only_the_assistants_are_learned(chat: Any) -> None:
    source = CHATML.replace("{{ m.content }}", "{{ m.content if m.content is string }}{{ m.tool_calls[0].function.name if m.tool_calls }}")
    tokenizer = chat("{{ tools[0].function.name if tools }}" + source)
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
    row = {"prompt": [USER], "completion": [call, {"role": "tool", "content": "7"}, ASSISTANT]}
    found = imitated({**row, "tools": [{"type": "function", "function": {"name": "add"}}]}, Template("chat"), tokenizer)
    assert learned_text(found, tokenizer) == ["add<|end|>", "Because.<|end|>"]
    assert tokenizer.decode(found.prompt).startswith("add<|im_start|>user")


def test_a_turn_that_ends_with_ordinary_text_is_learned_with_it_and_the_last_one_with_an_end_token(chat: Any) -> None:
    tokenizer = chat("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant: ' if add_generation_prompt }}")
    found = imitated({"prompt": TALK[:1], "completion": TALK[1:]}, Template("chat"), tokenizer)
    assert learned_text(found, tokenizer) == ["Because.\n", "So <think>it</think> is.\n<|end|>"]


def test_turns_after_the_assistants_last_one_are_left_off(chat: Any) -> None:
    tokenizer = chat(CHATML)
    assert (
        imitated({"prompt": TALK[:1], "completion": TALK[1:3]}, Template("chat"), tokenizer).completion
        == imitated({"prompt": TALK[:1], "completion": TALK[1:2]}, Template("chat"), tokenizer).completion
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"), "leaves out part of what the assistant said"),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else m.content | replace('ause', '') }}"),
            "writes an earlier turn otherwise once others follow",
        ),
        (CHATML.replace("assistant\n'", "assistant\n<think>\n'"), "begins a turn for the model otherwise than it writes one that is over"),
    ],
)
def test_a_template_that_rewrites_turns_is_refused_with_the_reason(chat: Any, source: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        imitated({"prompt": TALK[:1], "completion": TALK[1:]}, Template("chat"), chat(source))


def test_a_template_of_text_takes_no_conversation(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="template 'r1_zero' takes text, and this row is a conversation; write template: chat"):
        imitated({"prompt": [USER], "completion": [ASSISTANT]}, Template("r1_zero"), tokenizer)


# ---------------------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("completion", ["seven<|end|>", "seven<|end|>\n"])
def test_an_end_token_that_is_there_already_is_not_appended_again(tokenizer: Any, completion: str) -> None:
    once = imitated({"prompt": "q", "completion": "seven"}, Template("plain"), tokenizer)
    twice = imitated({"prompt": "q", "completion": completion}, Template("plain"), tokenizer)
    assert once.completion == twice.completion and once.completion.count(tokenizer.eos_token_id) == 1
    assert (once.mended, twice.mended) == ((), (END_TWICE,))


@pytest.mark.parametrize("completion", ["<think>\nso</think> 7", "\n<think>\nso</think> 7"])
def test_an_opening_tag_that_the_template_writes_is_not_learned_again(chat: Any, completion: str) -> None:
    tokenizer = chat(CHATML.replace("assistant\n'", "assistant\n<think>\n'"))
    found = imitated({"prompt": "q", "completion": completion}, Template("chat"), tokenizer)
    assert tokenizer.decode([*found.prompt, *found.completion]).endswith("assistant\n<think>\nso</think> 7<|end|>")
    assert found.mended == (THINK_TWICE,)
    without = imitated({"prompt": "q", "completion": "so</think> 7"}, Template("chat"), tokenizer)
    assert (without.prompt, without.completion, without.mended) == (found.prompt, found.completion, ())
    other = imitated({"prompt": "q", "completion": "<think>so"}, Template("chat", Tags(think="reason")), tokenizer)
    assert other.mended == ()


def test_what_was_mended_is_said_with_how_many() -> None:
    assert list(mended_in_words({THINK_TWICE: 1, END_TWICE: 1200})) == [
        "1 completion began with the opening tag that the template writes already; it is learned with one",
        "1,200 completions ended with the end token that is appended anyway; they are learned with one",
    ]


def test_without_an_end_token_nothing_can_be_learned(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    with pytest.raises(DataError, match="the tokenizer has no end token"):
        imitated({"prompt": "q", "completion": "a"}, Template("plain"), bare)
