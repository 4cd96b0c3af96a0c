"""The built-in templates write NeMo's chat format to the letter."""

import json

import pytest

from dpolish.data.templates import TEMPLATES, ChatTemplate, PromptTokens, choose_template
from dpolish.errors import DataError
from dpolish.records import Message, TemplateArguments
from tests.data.small_tokenizers import byte_level

USER, ANSWER = Message("user", "Which year was the Magna Carta signed?"), Message("assistant", "1215")


def chosen(asked: str | None, tokens: PromptTokens | None = None) -> ChatTemplate:
    template = choose_template(byte_level(), asked, tokens)
    assert template is not None
    return template


def test_extra_id_writes_the_tutorials_row() -> None:
    template = chosen("extra_id")
    prompt = "<extra_id_0>System\n\n<extra_id_1>User\nWhich year was the Magna Carta signed?\n<extra_id_1>Assistant\n"
    assert template.render([USER], generate=True) == prompt
    assert template.render([USER, ANSWER], generate=False) == prompt + "1215\n<extra_id_1>"


def test_nemo_writes_its_control_characters() -> None:
    template = chosen("nemo")
    text = "\x00System\nBe kind.\n\x11User\nHi\n\x11Assistant\nYes\n\x11User\nWhy?\n\x11Assistant\n"
    turns = [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Yes"), Message("user", "Why?")]
    assert template.render(turns, generate=True) == text


@pytest.mark.parametrize(
    "tokens",
    [
        PromptTokens("<S>", "<T>", "<L>", "<E>\n", ":"),
        PromptTokens("'", '"', "\\", "\n\n", "{{ x }}"),
        PromptTokens("é🙂", "\x00", "{%", "#}", "\t"),
    ],
)
def test_any_five_tokens_are_written_to_the_letter(tokens: PromptTokens) -> None:
    start, turn, label, end, name = tokens
    template = chosen(None, tokens)
    labelled = Message("assistant", "1215", json.dumps({"label": "good", "type": "VALUE_TO_TEXT"}))
    text = template.render([Message("user", "Hi"), labelled], generate=False)
    header = f"{start}System{name}{end}{turn}User{name}Hi{end}"
    assert text == f"{header}{turn}Assistant{name}{label}good{name}1215{end}{turn}"
    assert template.name == "nemo"
    assert template.stop == (end + turn).rstrip()


def test_the_extra_id_template_is_nemos_with_other_tokens() -> None:
    tokens = PromptTokens("<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "\n", "\n")
    assert chosen("nemo", tokens).source == TEMPLATES["extra_id"]
    assert chosen(None, PromptTokens()).fingerprint == chosen("nemo").fingerprint
    assert chosen("extra_id").fingerprint != chosen("nemo").fingerprint


@pytest.mark.parametrize(
    ("kind", "prompt_end", "trained"),
    [
        ("VALUE_TO_TEXT", "<extra_id_2>quality:4\n", "1215\n<extra_id_1>"),
        ("TEXT_TO_VALUE", "1215\n<extra_id_2>", "quality:4\n<extra_id_1>"),
    ],
)
def test_labels_stand_where_nemo_puts_them(kind: str, prompt_end: str, trained: str) -> None:
    template = chosen("extra_id")
    labelled = Message("assistant", "1215", json.dumps({"label": "quality:4", "type": kind}))
    prompt = template.render([USER], generate=True, next_turn=labelled)
    assert prompt.endswith("<extra_id_1>Assistant\n" + prompt_end)
    assert template.render([USER, labelled], generate=False) == prompt + trained


def test_a_label_without_type_or_text_is_not_written() -> None:
    template = chosen("extra_id")
    plain = template.render([USER, ANSWER], generate=False)
    for more in ({"label": "good"}, {"label": None, "type": "VALUE_TO_TEXT"}, {"label": "good", "type": None}):
        assert template.render([USER, Message("assistant", "1215", json.dumps(more))], generate=False) == plain


def test_other_speakers_keep_their_names_and_later_system_messages_are_turns() -> None:
    text = chosen("extra_id").render([USER, Message("system", "Now!"), Message("Critic", "Bad.")], generate=False)
    assert text.endswith("\n<extra_id_1>System\nNow!\n<extra_id_1>Critic\nBad.\n")


def test_what_the_format_has_no_place_for_is_refused() -> None:
    call = Message("assistant", "", '{"tool_calls": [{"function": {"name": "f"}}]}')
    with pytest.raises(DataError, match="no place for tool calls"):
        chosen("extra_id").render([USER, call], generate=False)
    with pytest.raises(DataError, match="no place for tools"):
        chosen("nemo").render([USER], TemplateArguments(tools='[{"name": "f"}]'), generate=True)
