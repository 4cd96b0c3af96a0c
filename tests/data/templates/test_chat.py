"""Which template, and that it renders as the library does."""

import copy
import json
import os
from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dpolish.data.templates import ChatTemplate, PromptTokens, choose_template, require_chat_template
from dpolish.errors import ConfigError, DataError, ModelError
from dpolish.records import Message, TemplateArguments
from tests.data import small_tokenizers
from tests.data.chat_templates import ALL

SYSTEM, USER = Message("system", "Be kind."), Message("user", "Hi")
ANSWER = Message("assistant", "Yes")


def with_template(template: object) -> PreTrainedTokenizerBase:
    tokenizer = copy.copy(small_tokenizers.byte_level())
    tokenizer.chat_template = template
    return tokenizer


def own(template: object) -> ChatTemplate:
    found = choose_template(with_template(template))
    assert found is not None
    return found


# Choosing


def test_the_tokenizers_own_is_the_default() -> None:
    template = own(small_tokenizers.CHATML)
    assert (template.name, template.source, template.stop) == ("model", small_tokenizers.CHATML, "<|im_end|>")
    assert len(template.fingerprint) == 64


@pytest.mark.parametrize("template", [None, "", {}])
def test_no_template_is_none_until_a_row_needs_it(template: object) -> None:
    tokenizer = with_template(template)
    assert choose_template(tokenizer) is None
    with pytest.raises(ModelError, match=r"(?s)no chat template.*chat_template.jinja.*=extra_id.*as strings"):
        require_chat_template(tokenizer, None)


def test_named_templates_need_a_default() -> None:
    tokenizer = with_template({"rag": "x", "tool_use": "y"})
    assert choose_template(tokenizer) is None
    with pytest.raises(ModelError, match="has the chat templates rag, tool_use, and none is the default"):
        require_chat_template(tokenizer, None)


def test_rows_with_tools_take_the_template_for_tools() -> None:
    template = own({"default": small_tokenizers.CHATML, "tool_use": "{{ tools[0].name }}"})
    assert template.render([USER], generate=True).startswith("<|im_start|>user")
    assert template.render([USER], TemplateArguments(tools='[{"name": "f"}]'), generate=True) == "f"
    assert template.render([USER], TemplateArguments(kwargs='{"a": 1}'), generate=True).startswith("<|im_start|>user")


def test_a_broken_template_of_the_model_is_an_error_when_it_is_used() -> None:
    template = own("{% for")
    assert template.stop == ""
    with pytest.raises(ModelError, match="the chat template has an error: line 1"):
        template.render([USER], generate=True)


def test_a_file_is_a_template(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(ALL["gemma"], encoding="utf-8")
    template = choose_template(small_tokenizers.unigram(), str(file))
    assert template is not None
    assert (template.name, template.stop) == (str(file), "<end_of_turn>")
    assert template.render([USER], generate=True) == "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"


def test_what_is_asked_for_and_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    tokenizer, file = small_tokenizers.byte_level(), tmp_path / "mine.jinja"
    with pytest.raises(ConfigError, match=r"chat_template=.*mine.jinja: there is no such file"):
        choose_template(tokenizer, str(file))
    with pytest.raises(ConfigError, match=r"unknown chat template 'extra-id'. Did you mean 'extra_id'"):
        choose_template(tokenizer, "extra-id")
    file.write_text("{% for", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.jinja: the chat template has an error: line 1"):
        choose_template(tokenizer, str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        choose_template(tokenizer, str(file))
    file.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="not a file of at most"):
        choose_template(tokenizer, str(file))
    os.mkfifo(pipe := tmp_path / "pipe.jinja")
    with pytest.raises(ConfigError, match="not a file of at most"):
        choose_template(tokenizer, str(pipe))
    with pytest.raises(ConfigError, match="are both given"):
        choose_template(tokenizer, "extra_id", PromptTokens())


STOPS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "zephyr": "<|im_end|>",
    "brackets": "<|im_end|>",
}


@pytest.mark.parametrize(("name", "stop"), STOPS.items())
def test_the_end_of_a_turn_is_found(name: str, stop: str) -> None:
    assert own(ALL[name]).stop == stop  # the end-of-sequence token of this tokenizer is <|im_end|>


def test_a_template_that_ends_turns_with_blanks_has_no_stop() -> None:
    assert own("{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}").stop == ""


# Rendering

CALL = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, "é"]}}}]}
CONVERSATIONS = {
    "plain": [USER, ANSWER, USER],
    "system": [SYSTEM, USER],
    "calls": [USER, Message("assistant", "", json.dumps(CALL)), Message("tool", "4", '{"tool_call_id": "1"}')],
    "nulls": [USER, Message("assistant", "x", '{"tool_calls": null, "reasoning_content": null, "name": "a"}')],
    "reasoning": [USER, Message("assistant", "x", '{"reasoning_content": "Hm."}')],
    "thinking": [USER, Message("assistant", "x", '{"thinking": "Hm."}')],
}
PRINTING = (
    "{{ messages | tojson }}{{ tools | tojson }}{{ documents is none }}{{ bos_token is defined }}{{ x }}{{ pad }}"
)
REFUSED = [
    ("gemma", CONVERSATIONS["system"]),
    ("brackets", CONVERSATIONS["system"]),
    *((name, CONVERSATIONS["calls"]) for name in ("brackets", "mistral", "mistral_last")),
]
ARGUMENTS = TemplateArguments('[{"type": "function", "function": {"name": "f"}}]', '{"x": [true, "é"], "pad": null}')


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("name", [*ALL, "printing"])
def test_texts_are_those_of_the_library(name: str, messages: list[Message], generate: bool) -> None:
    source = ALL.get(name, PRINTING)
    tokenizer = with_template(source)
    plain = [{"role": m.role, "content": m.content, **json.loads(m.more or "{}")} for m in messages]
    arguments = {"tools": json.loads(ARGUMENTS.tools), **json.loads(ARGUMENTS.kwargs)}

    def theirs() -> object:
        return tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generate, **arguments)

    if (name, messages) in REFUSED:
        with pytest.raises(DataError, match="the chat template refuses these messages"):
            own(source).render(messages, ARGUMENTS, generate=generate)
        with pytest.raises(TemplateError):
            theirs()
    else:
        assert own(source).render(messages, ARGUMENTS, generate=generate) == theirs()


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content.x }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_messages_that_a_template_refuses_are_the_rows_fault(template: str) -> None:
    with pytest.raises(DataError, match=r"the chat template refuses these messages \(user\)"):
        own(template).render([USER], generate=True)


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "chat_template", "next_turn"])
def test_arguments_of_a_row_cannot_replace_what_is_rendered(name: str) -> None:
    arguments = TemplateArguments(kwargs=json.dumps({name: []}))
    with pytest.raises(DataError, match=f"chat_template_kwargs has '{name}'"):
        own(small_tokenizers.CHATML).render([USER], arguments, generate=True)


def test_arguments_of_a_row_reach_the_template() -> None:
    template = own(ALL["qwen3"])
    quiet = TemplateArguments(kwargs='{"enable_thinking": false}')
    assert template.render([USER], generate=True).endswith("assistant\n")
    assert template.render([USER], quiet, generate=True).endswith("assistant\n<think>\n\n</think>\n\n")
