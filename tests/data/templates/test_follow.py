"""Whether rows of strings are written in the model's template."""

from dataclasses import replace

import pytest

from dpolish.data.templates import ChatTemplate, choose_template, compare_with_template
from dpolish.records import Conversation, Message, PreferencePair
from tests.data.chat_templates import ALL
from tests.data.small_tokenizers import KINDS, byte_level, metaspace

TUTORIAL = "<extra_id_0>System\n\n<extra_id_1>User\nWhich year?\n<extra_id_1>Assistant\n"


def chosen(asked: str | None = "extra_id") -> ChatTemplate:
    template = choose_template(byte_level(), asked)
    assert template is not None
    return template


def pair(prompt: str, chosen: str, rejected: str, line: int = 1) -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, None, None, f"rows.jsonl:{line}")


GOOD = pair(TUTORIAL, "1215\n<extra_id_1>", "I refuse.\n<extra_id_1>")


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        pair(TUTORIAL.replace("System\n\n", "System\nBe kind.\n"), "1215\n<extra_id_1>", "No\n<extra_id_1>"),
        pair(TUTORIAL + "Yes\n<extra_id_1>User\nWhy?\n<extra_id_1>Assistant\n", "1\n<extra_id_1>", "2\n<extra_id_1>\n"),
        Conversation((TUTORIAL, "1215\n<extra_id_1>"), (False, True), "rows.jsonl:1"),
    ],
)
def test_rows_in_the_template_pass(row: PreferencePair | Conversation) -> None:
    assert compare_with_template([row], chosen()) is None


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (pair("Which year?", "1215\n<extra_id_1>", "No\n<extra_id_1>"), "prompts do not begin"),
        (pair(TUTORIAL.strip(), "1215\n<extra_id_1>", "No\n<extra_id_1>"), "prompts do not end"),
        (pair(TUTORIAL, "1215", "No\n<extra_id_1>"), "answers do not end"),
        (pair(TUTORIAL, "1215\n<extra_id_1>", "No<extra_id_1>"), "answers do not end"),
        (Conversation((TUTORIAL, "1215"), (False, True), "rows.jsonl:1"), "answers do not end"),
        (Conversation(("1215",), (True,), "rows.jsonl:1"), "prompts do not begin"),
    ],
)
def test_what_differs_is_named(row: PreferencePair | Conversation, part: str) -> None:
    found = compare_with_template([row], chosen())
    assert found is not None
    assert (found.rows, found.differing, found.part, found.where) == (1, 1, part, "rows.jsonl:1")


def test_the_finding_counts_and_shows_the_first() -> None:
    bad = [pair("Which year?" * 30, "1215", "No", line) for line in (3, 9)]
    messages = PreferencePair((Message("user", "Hi"),), (), (), None, None, "rows.jsonl:2")
    found = compare_with_template([GOOD, messages, *bad, GOOD], chosen())
    assert found is not None
    assert (found.rows, found.differing, found.where) == (4, 2, "rows.jsonl:3")
    opening = "<extra_id_0>System\n\n<extra_id_1>User\n"
    assert str(found) == (
        "2 of 4 rows are not written in the chat template (extra_id): prompts do not begin as it writes them. "
        f"rows.jsonl:3 has {('Which year?' * 30)[:60]!r}, the template {opening!r}"
    )


def test_only_the_first_rows_are_read() -> None:
    rows = iter([GOOD] * 64 + [pair("x", "y", "z")])
    assert compare_with_template(rows, chosen()) is None
    assert len(list(rows)) == 1


def test_a_default_system_message_or_one_of_the_row() -> None:
    default = (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
        + ALL["chatml"]
    )
    template = ChatTemplate("model", default, "<|im_end|>")
    turn, end = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Yes<|im_end|>"
    for system in ("Be brief.", "Be kind."):
        prompt = f"<|im_start|>system\n{system}<|im_end|>\n{turn}"
        assert compare_with_template([pair(prompt, end, end)], template) is None
    found = compare_with_template([pair(turn, end, end)], template)
    assert found is not None
    assert found.part == "prompts do not begin"


def test_the_beginning_token_may_be_written_or_left_to_the_tokenizer() -> None:
    template = choose_template(metaspace())
    assert template is not None
    for prompt in ("[INST] Hi [/INST]", "<s>[INST] Hi [/INST]"):
        assert compare_with_template([pair(prompt, " Yes</s>", " No</s>")], template) is None


def test_an_end_token_that_is_appended_may_be_missing() -> None:
    template = choose_template(metaspace())
    assert template is not None
    row = pair("[INST] Hi [/INST]", " Yes", " No")
    assert compare_with_template([row], template) is not None
    assert compare_with_template([row], template, append_eod=True) is None
    other = replace(template, stop="<|im_end|>")
    assert compare_with_template([row], other, append_eod=True) is not None


def test_a_template_that_cannot_be_used_finds_nothing() -> None:
    assert compare_with_template([GOOD], ChatTemplate("model", "{% for")) is None
    assert compare_with_template([GOOD], ChatTemplate("model", "always the same")) is None
    assert compare_with_template([], chosen()) is None


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral", "zephyr"])
def test_rows_rendered_by_a_template_follow_it(name: str) -> None:
    tokenizer = KINDS["unigram"]()
    special = tuple((key, str(text)) for key, text in tokenizer.special_tokens_map.items())
    template = ChatTemplate(name, ALL[name], special_tokens=special)
    messages = [Message("user", "Hi"), Message("assistant", "Yes"), Message("user", "Why?")]
    prompt = template.render(messages, generate=True)
    whole = template.render([*messages, Message("assistant", "So.")], generate=False)
    answer = whole.removeprefix(prompt)
    assert compare_with_template([pair(prompt, answer, answer)], template) is None
