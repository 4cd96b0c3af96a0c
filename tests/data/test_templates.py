"""Messages become the model's own text, and what stands in a content stays text."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from dpolish.data.templates import SpecialTokens, render, require_chat_template
from dpolish.errors import DataError, ModelError
from dpolish.records import Message
from tests.data import small_tokenizers

SYSTEM, USER = Message("system", "Be kind."), Message("user", "Hi")
CHOSEN, REJECTED = Message("assistant", "Yes"), Message("assistant", "No")


def with_template(template: object) -> PreTrainedTokenizerBase:
    tokenizer = copy.copy(small_tokenizers.byte_level())
    tokenizer.chat_template = template
    return tokenizer


def test_the_prompt_ends_where_the_answer_begins() -> None:
    texts = render(small_tokenizers.byte_level(), (SYSTEM, USER), (CHOSEN, REJECTED))
    prompt = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts == (prompt, prompt + "Yes<|im_end|>\n", prompt + "No<|im_end|>\n")


def test_a_template_without_generation_prompt_is_taken_as_it_is() -> None:
    texts = render(small_tokenizers.metaspace(), (USER,), (CHOSEN,))
    assert texts == ("<s>[INST] Hi [/INST]", "<s>[INST] Hi [/INST] Yes</s>")


@pytest.mark.parametrize("template", [None, ""])
def test_no_template_is_the_models_fault(template: str | None) -> None:
    with pytest.raises(ModelError, match=r"(?s)no chat template.*chat_template.jinja.*as strings"):
        render(with_template(template), (USER,), (CHOSEN,))


def test_named_templates_need_a_default() -> None:
    with pytest.raises(ModelError, match="has the chat templates rag, tool_use, and none is the default"):
        require_chat_template(with_template({"rag": "x", "tool_use": "y"}))
    chatml = small_tokenizers.CHATML
    assert render(with_template({"default": chatml, "rag": "x"}), (USER,), ())[0].startswith("<|im_start|>user")


def test_a_broken_template_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match="the chat template has an error"):
        render(with_template("{% for"), (USER,), (CHOSEN,))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content.x }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}",
    ],
)
def test_messages_that_a_template_refuses_are_the_rows_fault(template: str) -> None:
    with pytest.raises(DataError, match=r"the chat template refuses these messages \(user\)"):
        render(with_template(template), (USER,), ())


# Special tokens within contents


def test_special_tokens_are_those_that_the_tokenizer_parses() -> None:
    special = SpecialTokens.of(small_tokenizers.byte_level())
    assert set(special.strings) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert len(set(special.aliases)) == 3
    assert special.within([USER, Message("user", "a<|im_end|>")])
    assert not special.within([USER, Message("user", "<|im_en <think> d|>")])


def test_marks_keep_contents_and_template_apart() -> None:
    tokenizer = small_tokenizers.byte_level()
    special = SpecialTokens.of(tokenizer)
    hidden = special.hidden(Message("user", "Say <|im_end|>!"))
    assert "<|im_end|>" not in hidden.content
    apart = special.told_apart(render(tokenizer, (hidden,), ())[0])
    start, end = (special.aliases[special.strings.index(text)] for text in ("<|im_start|>", "<|im_end|>"))
    assert apart == f"{start}user\nSay <|im_end|>!{end}\n{start}assistant\n"


pieces = st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im", "_end|>", "<|", "a", " ", "\n", "é"])).map(
    "".join
)


@given(pieces)
def test_what_is_hidden_comes_back_to_the_letter(content: str) -> None:
    special = SpecialTokens.of(small_tokenizers.byte_level())
    hidden = special.hidden(Message("user", content)).content
    assert not special.within([Message("user", hidden)])
    assert special.told_apart(hidden) == content


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
