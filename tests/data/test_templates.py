"""What the model is given to continue: the paper's text, the tokenizer's chat, and what they already wrote of the answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grpo.config import Tags
from grpo.data.templates import Template
from grpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ '[assistant]' if add_generation_prompt }}"


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerFast:
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    return tokenizer


def test_r1_zero_is_the_papers_text(tokenizer: PreTrainedTokenizerFast) -> None:
    # arXiv:2501.12948, table 1
    assert Template("r1_zero").text("What is 3 + 4?", tokenizer) == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first thinks "
        "about the reasoning process in the mind and then provides the user with the answer. The reasoning process and answer are "
        "enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
        "<answer> answer here </answer>. User: What is 3 + 4?. Assistant:"
    )


def test_r1_zero_takes_the_recipes_tag_names(tokenizer: PreTrainedTokenizerFast) -> None:
    assert Template("r1_zero", Tags(think="t", answer="final")).text("Q", tokenizer) == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first thinks "
        "about the reasoning process in the mind and then provides the user with the answer. The reasoning process and answer are "
        "enclosed within <t> </t> and <final> </final> tags, respectively, i.e., <t> reasoning process here </t> "
        "<final> answer here </final>. User: Q. Assistant:"
    )


def test_braces_in_a_question_stay_as_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    question = r"What is \frac{1}{2} of {question} and {think}?"
    assert f"User: {question}. Assistant:" in Template("r1_zero").text(question, tokenizer)
    assert Template("plain").text(question, tokenizer) == question


@pytest.mark.parametrize("name", ["r1_zero", "plain"])
def test_prompts_are_tokenised_with_nothing_added(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    template = Template(name)
    prompt = template.prompt({"prompt": "What is 3 + 4?", "answer": "7"}, "sums/0", tokenizer)
    assert tokenizer.decode(prompt.tokens) == template.text("What is 3 + 4?", tokenizer)
    assert (prompt.id, prompt.prefill, prompt.columns["answer"]) == ("sums/0", "", "7")


def test_chat_wraps_a_string_as_the_users_message(chatty: PreTrainedTokenizerFast) -> None:
    assert Template("chat").text("hello", chatty) == "[user]hello[assistant]"


def test_chat_takes_messages_as_they_are(chatty: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert Template("chat").text(messages, chatty) == "[system]be brief[user]hello[assistant]"


@pytest.mark.parametrize(
    ("ending", "prefill"),
    [
        ("[assistant]", ""),
        ("[assistant]<think>\n", "<think>\n"),  # DeepSeek-R1's own template
        ("[assistant]<think>", "<think>"),
        ("[assistant]<think>\n\n</think>\n\n", ""),  # thinking switched off
    ],
)
def test_what_a_chat_template_wrote_of_the_answer_is_the_prefill(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, ending: str, prefill: str
) -> None:
    escaped = ending.replace("\n", "\\n")
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[0].content }}{{ '" + escaped + "' if add_generation_prompt }}")
    prompt = Template("chat").prompt({"prompt": "Why <think>?"}, "0", tokenizer)
    assert prompt.prefill == prefill
    assert tokenizer.decode(prompt.tokens) == f"Why <think>?{ending}"


def test_the_prefill_is_looked_for_under_the_recipes_tag_name(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[0].content }}[assistant]<reason>")
    assert Template("chat", Tags(think="reason")).prompt({"prompt": "q"}, "0", tokenizer).prefill == "<reason>"
    assert Template("chat").prompt({"prompt": "q"}, "0", tokenizer).prefill == ""


def test_a_jinja_file_is_read_from_beside_the_recipe(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "mine.jinja").write_text("Q: {{ messages[0].content }}\nA:", encoding="utf-8")
    assert Template("./mine.jinja", base=tmp_path).text("why?", tokenizer) == "Q: why?\nA:"


def test_chat_without_a_chat_template_says_what_to_set(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no chat template; set template: r1_zero, plain or ./file.jinja"):
        Template("chat").text("hello", tokenizer)


def test_messages_need_a_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="template 'r1_zero' takes a string as prompt, found a list; use template: chat"):
        Template("r1_zero").text([{"role": "user", "content": "hello"}], tokenizer)
