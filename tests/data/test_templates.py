"""What the model is given to continue: the paper's text, the tokenizer's chat, and what they already wrote of the answer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grpo.config import Tags
from grpo.config.check_templates import option_mistakes, template_mistakes
from grpo.data.template_checks import template_warnings
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


# ------------------------------------------------------------------------------------------------------------------------------ checks

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


def warnings(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, chat_template: str, **keys: Any) -> list[str]:
    monkeypatch.setattr(tokenizer, "chat_template", chat_template)
    return template_warnings(Template("chat"), tokenizer, **keys)


def test_a_template_whose_turns_end_with_the_end_token_has_no_warning(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokenizer.eos_token == "<|end|>"
    assert warnings(tokenizer, monkeypatch, CHATML, stops_at=[tokenizer.eos_token_id]) == []
    assert template_warnings(Template("r1_zero"), tokenizer) == template_warnings(Template("plain"), tokenizer) == []


@pytest.mark.parametrize(
    ("chat_template", "said"),
    [
        (CHATML.replace("<|end|>", "<|pad|>"), "ends a turn with '<|pad|>', and the tokenizer's end token is '<|end|>'"),
        (CHATML.replace("<|end|>\n", ""), "writes nothing at the end of a turn, and the tokenizer's end token is '<|end|>'"),
        (CHATML.replace("assistant\n'", "assistant\n<think>\n'"), "opens <think> itself: completions begin inside it"),
        (CHATML.replace("assistant\n'", "assistant\n<think>\n\n</think>\n\n'"), "closes <think> before the model begins"),
        (CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"), "drops the thinking of earlier turns"),
        (CHATML.replace("assistant\n'", "model\n'"), "writes a turn that is over otherwise than one that begins (after '"),
        (CHATML.replace("{{ m.content }}", "{{ m.content if m.role == 'user' }}"), "leaves out what the assistant said in earlier turns"),
        (
            "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('users only') }}{% endif %}{{ m.content }}{% endfor %}",
            "takes no turn of the assistant (template 'chat' cannot render",
        ),
    ],
)
def test_what_one_should_know_of_a_template_is_said(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, chat_template: str, said: str
) -> None:
    assert any(said in warning for warning in warnings(tokenizer, monkeypatch, chat_template))


def test_a_template_that_leaves_the_question_out_is_refused(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="template 'chat' leaves the question out of the prompt"):
        warnings(tokenizer, monkeypatch, "{{ messages[0].text }} go")


def test_a_tokenizer_that_cuts_over_the_boundary_is_noticed(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast) -> None:
    """Merges that reach over the place where prompt and completion meet: ": " and "seven" apart, ":" and " seven" together."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<e>": 0, "?": 1, " ": 2, "seven": 3, " seven": 4, "<think>": 5, "so": 6, "\n": 7, "Q": 8}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="Q"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"<think>|\n| ?seven|so|\?| "), behavior="isolated")
    cutting = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>", unk_token="Q")
    monkeypatch.setattr(cutting, "chat_template", "{{ messages[0].content }}{{ ' ' if add_generation_prompt }}")
    (first, *_) = template_warnings(Template("chat"), cutting)
    assert first.startswith("where the prompt ends ('t is 3 + 4? '), completions that begin with 'seven' are cut into other tokens")


def test_no_end_token_and_another_one_in_the_models_configuration_are_said(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    (said,) = template_warnings(Template("plain"), tokenizer, stops_at=[tokenizer.pad_token_id])
    assert said.startswith("the model's configuration stops at '<|pad|>', and not at the tokenizer's end token '<|end|>'")
    bare = copy.deepcopy(tokenizer)
    bare.eos_token = None
    (said,) = template_warnings(Template("plain"), bare)
    assert said.startswith("the tokenizer has no end token")


def test_without_a_pad_token_or_with_the_end_token_as_pad_nothing_is_amiss(tokenizer: PreTrainedTokenizerFast) -> None:
    """Batches are packed and masked by length, so a padding token is never looked at."""
    bare = copy.deepcopy(tokenizer)
    for pad in (None, bare.eos_token):
        bare.pad_token = pad
        assert template_warnings(Template("plain"), bare) == []
        assert Template("plain").prompt({"prompt": "a<|end|>b"}, "0", bare).tokens == tuple(bare.encode("a<|end|>b"))


@pytest.fixture
def beginning(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that puts <|pad|> before every text by itself, as Llama's does its BOS token."""
    from tokenizers.processors import TemplateProcessing

    mine = copy.deepcopy(tokenizer)
    mine.backend_tokenizer.post_processor = TemplateProcessing(single="<|pad|> $A", special_tokens=[("<|pad|>", tokenizer.pad_token_id)])
    assert mine.encode("a")[0] == tokenizer.pad_token_id
    return mine


@pytest.mark.parametrize("name", ["r1_zero", "plain"])
def test_a_prompt_begins_with_what_the_tokenizer_puts_first_once(
    beginning: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    first = tokenizer.pad_token_id
    tokens = Template(name).prompt({"prompt": "q"}, "0", beginning).tokens
    assert tokens == (first, *Template(name).prompt({"prompt": "q"}, "0", tokenizer).tokens)
    assert Template("plain").prompt({"prompt": "<|pad|>q"}, "0", beginning).tokens.count(first) == 1
    (said,) = template_warnings(Template(name), beginning)
    assert said == "the tokenizer puts '<|pad|>' before every text, so every prompt begins with it"


def test_a_chat_template_writes_its_own_beginning_or_none(beginning: PreTrainedTokenizerFast) -> None:
    beginning.chat_template = "<|pad|>" + CHATML
    assert Template("chat").prompt({"prompt": "q"}, "0", beginning).tokens.count(beginning.pad_token_id) == 1
    assert template_warnings(Template("chat"), beginning) == []
    beginning.chat_template = CHATML
    (said,) = template_warnings(Template("chat"), beginning)
    assert said.startswith("the tokenizer puts '<|pad|>' before a text, and the chat template writes none, so prompts have none")


QWEN3 = CHATML.replace(
    "assistant\n'", "assistant\n' + ('<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false else '')"
)


def test_a_chat_template_is_told_its_options(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", QWEN3)
    (tmp_path / "mine.jinja").write_text(QWEN3)
    for name in ("chat", "./mine.jinja"):
        without = Template(name, base=tmp_path, options={"enable_thinking": False})
        assert without.text("q", tokenizer) == Template(name, base=tmp_path).text("q", tokenizer) + "<think>\n\n</think>\n\n"
    with pytest.raises(DataError, match="never asks for 'enable_thinkin'; it asks for .enable_thinking.; did you mean 'enable_thinking'"):
        template_warnings(Template("chat", options={"enable_thinkin": False}), tokenizer)


@pytest.mark.parametrize(
    ("options", "source", "said"),
    [
        ({"tools": []}, QWEN3, "'tools' is given to every template by the toolkit itself; delete it"),
        ({"style": 1}, CHATML, "the template never asks for 'style'; it asks for none"),
        ({"m": 1}, CHATML, "the template never asks for 'm'"),
        ({"a": 1}, "{% set a = a if a is defined else 2 %}{% generation %}{{ a }}{% endgeneration %}", None),
        ({}, None, None),
        ({"a": 1}, None, "it has no options; use a chat template, or delete them"),
    ],
)
def test_options_that_a_template_never_asks_for_are_mistakes(options: dict[str, Any], source: str | None, said: str | None) -> None:
    assert [text[: len(said or "")] for text in option_mistakes(options, source)] == ([said] if said else [])


# ------------------------------------------------------------------------------------------------------------------------------ hostile


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ messages['__class__'] }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_template_reaches_nothing_outside_of_it(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, source: str) -> None:
    (tmp_path / "mine.jinja").write_text(source)
    try:
        text = Template("./mine.jinja", base=tmp_path).text("q", tokenizer)
    except DataError as error:
        assert str(error).startswith("template './mine.jinja' cannot render")
    else:
        assert text == ""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a\n{{ messages.__class__ }}", "2: a template may not use __class__"),
        ("{{ messages['__init__'] }}", "1: a template may not use __init__"),
        ("{% if x %}\n{{ a }", "2: not a jinja template: "),
        ("{% nothing %}", "1: not a jinja template: Encountered unknown tag 'nothing'."),
    ],
)
def test_a_bad_template_is_found_by_its_look(source: str, said: str) -> None:
    (mistake,) = template_mistakes(source)
    assert mistake.startswith(said)


def test_templates_as_models_ship_them_are_fine_by_their_look() -> None:
    assert template_mistakes(CHATML) == []
    shipped = "{%- for m in messages %}{% generation %}{{ m['content'] | tojson }}{% endgeneration %}{% break %}{%- endfor %}{{ strftime_now('%Y') }}"
    assert template_mistakes(shipped) == []
