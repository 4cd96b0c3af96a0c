"""What stands in a content stays text."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpolish.data.templates import SpecialTokens, choose_template
from dpolish.errors import DataError
from dpolish.records import Message, TemplateArguments
from tests.data import small_tokenizers

SYSTEM, USER = Message("system", "Be kind."), Message("user", "Hi")


def test_special_tokens_are_those_that_the_tokenizer_parses() -> None:
    special = SpecialTokens.of(small_tokenizers.byte_level())
    assert set(special.strings) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert len(set(special.aliases)) == 3
    assert special.within([USER, Message("user", "a<|im_end|>")])
    assert not special.within([USER, Message("user", "<|im_en <think> d|>")])


def test_marks_keep_contents_and_template_apart() -> None:
    tokenizer = small_tokenizers.byte_level()
    template = choose_template(tokenizer)
    assert template is not None
    special = SpecialTokens.of(tokenizer)
    hidden = special.hidden(Message("user", "Say <|im_end|>!"))
    assert "<|im_end|>" not in hidden.content
    apart = special.told_apart(template.render([hidden], generate=True))
    start, end = (special.aliases[special.strings.index(text)] for text in ("<|im_start|>", "<|im_end|>"))
    assert apart == f"{start}user\nSay <|im_end|>!{end}\n{start}assistant\n"


pieces = st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im", "_end|>", "<|", "a", " ", "\n", "é"])).map(
    "".join
)


@given(pieces, pieces)
def test_what_is_hidden_comes_back_to_the_letter(content: str, name: str) -> None:
    special = SpecialTokens.of(small_tokenizers.byte_level())
    hidden = special.hidden(Message("user", content, json.dumps({"name": name, "calls": [{"f": [content, 1]}]})))
    assert not special.within([hidden])
    assert special.told_apart(hidden.content) == content
    more = json.loads(hidden.more)
    assert special.told_apart(more["name"]) == name
    assert special.told_apart(more["calls"][0]["f"][0]) == content


def test_the_longest_special_token_is_hidden() -> None:
    tokenizer = copy.deepcopy(small_tokenizers.words())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s", "<s>>"]})
    special = SpecialTokens.of(tokenizer)
    hidden = special.hidden(Message("user", "<s>> <s> <s")).content
    assert [special.strings[int(part.split("\U0010fff1")[0])] for part in hidden.split("\U0010fff0")[1:]] == [
        "<s>>",
        "<s>",
        "<s",
    ]


def test_marks_in_a_content_cannot_forge_a_token() -> None:
    special = SpecialTokens.of(small_tokenizers.byte_level())
    with pytest.raises(DataError, match="private-use characters"):
        special.hidden(Message("user", f"<|im_end|> {special.aliases[0]}"))
    harmless = Message("user", special.aliases[0])
    assert not special.within([harmless])  # so the text goes the usual way, where an alias means nothing


def test_special_tokens_are_found_in_further_fields_and_arguments() -> None:
    special = SpecialTokens.of(small_tokenizers.byte_level())
    escaped = json.dumps({"name": "<|im_end|>"}).replace("<", "\\u003c")
    assert special.within([Message("tool", "4", escaped)])
    assert special.within([USER], TemplateArguments(tools=f"[{escaped}]"))
    assert special.within([USER], TemplateArguments(kwargs=escaped))
    assert not special.within([Message("tool", "4", '{"<|im_end|>": "a"}')], TemplateArguments(tools="[1]"))
    assert "<|im_end|>" not in special.hidden_arguments(TemplateArguments(tools=f"[{escaped}]")).tools


def test_a_template_that_escapes_marks_is_an_error() -> None:
    special = SpecialTokens.of(small_tokenizers.byte_level())
    hidden = special.hidden(Message("user", "<|im_end|>"))
    with pytest.raises(DataError, match="which the chat template escapes"):
        special.told_apart(json.dumps(hidden.content))
