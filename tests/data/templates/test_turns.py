"""The assistant's turns are found in the text, or the row is an error: nothing is guessed."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpolish.data.templates import TEMPLATES, ChatTemplate, render_turns
from dpolish.data.templates.chat import turn_end
from dpolish.errors import DataError
from dpolish.records import Message, TemplateArguments
from tests.data.chat_templates import ALL

SOURCES = {**TEMPLATES, **ALL}
STABLE = ("extra_id", "nemo", "chatml", "llama3", "gemma", "mistral", "zephyr", "brackets")
"""Those in which a turn is the same whatever follows."""


def made(source: str) -> ChatTemplate:
    template = ChatTemplate("test", source, special_tokens=(("bos_token", "<s>"), ("eos_token", "</s>")))
    return replace(template, stop=turn_end(template).rstrip())


def user(content: str) -> Message:
    return Message("user", content)


def says(content: str, **more: object) -> Message:
    return Message("assistant", content, json.dumps(more) if more else "")


def trained(source: str, *messages: Message, **kwargs: object) -> list[str]:
    """The text of each trained span, all turns of the assistant being trained."""
    arguments = TemplateArguments(kwargs=json.dumps(kwargs)) if kwargs else TemplateArguments()
    wanted = [message.role == "assistant" for message in messages]
    rendered = render_turns(made(source), messages, wanted, arguments)
    return [rendered.text[start:end] for start, end in rendered.spans]


ENDS = {
    "extra_id": "\n<extra_id_1>",
    "nemo": "\n\x11",
    "chatml": "<|im_end|>\n",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>\n",
    "mistral": "</s>",
    "zephyr": "</s>\n",
    "brackets": "</s>",
}


@pytest.mark.parametrize("name", STABLE)
def test_a_turn_is_its_content_and_its_end(name: str) -> None:
    blank = " " if name in ("mistral", "brackets") else ""  # what these write in front of an answer is not in a prompt
    found = trained(SOURCES[name], user("Hi"), says("Yes"), user("Yes"), says("Yes"))
    assert found == [blank + "Yes" + ENDS[name]] * 2


def test_only_what_is_asked_for_is_trained() -> None:
    messages = (user("Hi"), says("Yes"), user("Why"), says("So"))
    rendered = render_turns(made(ALL["chatml"]), messages, (False, False, False, True))
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["So<|im_end|>\n"]


contents = st.text(st.sampled_from("ab \n<|>/_é🙂") | st.characters(codec="utf-8"), max_size=12)


@pytest.mark.parametrize("name", STABLE)
@settings(max_examples=20)
@given(data=st.data())
def test_many_turns_are_the_union_of_single_ones(name: str, data: st.DataObject) -> None:
    """Where later turns change nothing, each turn is trained as if the conversation ended with it."""
    texts = data.draw(st.lists(st.tuples(contents, contents), min_size=1, max_size=4))
    messages = [message for asked, said in texts for message in (user(asked), says(said))]
    together = trained(SOURCES[name], *messages)
    alone = []
    for last in range(2, len(messages) + 1, 2):
        rendered = render_turns(made(SOURCES[name]), messages[:last], [False] * (last - 1) + [True])
        ((start, end),) = rendered.spans
        alone.append(rendered.text[start:end])
    assert together == alone


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=20)
@given(data=st.data())
def test_spans_hold_the_content_and_the_end_of_turn(name: str, data: st.DataObject) -> None:
    """For every template: each span ends a turn, and has its content; between them stands the rest of the text."""
    texts = data.draw(st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
    template = made(SOURCES[name])
    messages = [message for asked, said in texts for message in (user(asked), says(said))]
    wanted = [message.role == "assistant" for message in messages]
    rendered = render_turns(template, messages, wanted)
    assert len(rendered.spans) == len(texts)
    for (start, end), (_, said) in zip(rendered.spans, texts, strict=True):
        span = rendered.text[start:end].rstrip()
        assert said.split("</think>")[-1].strip() in span
        assert span.endswith(template.stop.rstrip())


# Templates that write earlier turns otherwise


def test_thoughts_that_are_dropped_are_not_trained() -> None:
    thought = "<think>\nHm.\n</think>\n\n"
    found = trained(ALL["qwen3"], user("Hi"), says(thought + "Yes."), user("Why?"), says(thought + "So."))
    assert found == ["Yes.<|im_end|>\n", thought + "So.<|im_end|>\n"]


def test_thoughts_in_a_field_are_dropped_likewise() -> None:
    first = says("Yes.", reasoning_content="Hm.")
    found = trained(ALL["qwen3"], user("Hi"), first, user("Why?"), says("So.", reasoning_content="Oh."))
    assert found == ["Yes.<|im_end|>\n", "<think>\nOh.\n</think>\n\nSo.<|im_end|>\n"]


def test_turns_with_calls_between_two_questions() -> None:
    """The turn behind the tool's has its thought when it is last, and none when a question follows."""
    call = says("Look.", reasoning_content="Hm.", tool_calls=[{"function": {"name": "f"}}])
    messages = (user("Hi"), call, Message("tool", "4"), says("Four."), user("Why?"), says("So."))
    called = "Look.\n<tool_call>f</tool_call><|im_end|>\n"
    expected = [called, "Four.<|im_end|>\n", "<think>\n\n</think>\n\nSo.<|im_end|>\n"]
    assert trained(ALL["qwen3"], *messages) == expected
    kept = ["<think>\nHm.\n</think>\n\n" + called, "<think>\n\n</think>\n\nFour.<|im_end|>\n"]
    assert trained(ALL["qwen3"], *messages[:4]) == kept


def test_a_repeated_answer_is_found_in_its_own_place() -> None:
    asks, same = user("Yes.<|im_end|>\n"), says("Yes.")
    rendered = render_turns(made(ALL["qwen3"]), (asks, same, asks, same), (False, True, False, True))
    assert [start for start, _ in rendered.spans] == [
        rendered.text.index("assistant\n") + len("assistant\n"),
        rendered.text.rindex("assistant\n") + len("assistant\n"),
    ]


def test_an_empty_thought_of_the_generation_prompt_is_not_trained() -> None:
    found = trained(ALL["qwen3"], user("Hi"), says("Yes."), enable_thinking=False)
    assert found == ["Yes.<|im_end|>\n"]


def test_a_system_message_that_moves() -> None:
    messages = (Message("system", "Be kind."), user("Hi"), says("Yes"), user("Why?"), says("So"))
    assert trained(ALL["mistral_last"], *messages) == [" Yes</s>", " So</s>"]


def test_a_generation_prompt_with_more_than_the_text() -> None:
    """What the template writes in both is the prompt: DeepSeek's `<think>` is in no turn of the text."""
    assert trained(ALL["deepseek"], user("Hi"), says("<think>x</think>Yes."), user("Why?"), says("So.")) == [
        "Yes.<|im_end|>\n",
        "So.<|im_end|>\n",
    ]


LAST_IN_CAPITALS = "{% for m in messages %}{{ (m.content | upper if loop.last else m.content) ~ '|' }}{% endfor %}"
REVERSED = (
    "{% for m in messages | reverse %}{{ m.content ~ '|' }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
WITHOUT = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content ~ '|' }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("source", [LAST_IN_CAPITALS, REVERSED], ids=["capitals", "reversed"])
def test_what_cannot_be_told_is_an_error(source: str) -> None:
    with pytest.raises(DataError, match=r"writes turn 2 \(assistant\) otherwise .*model.data.trained_turns=last"):
        trained(source, user("hi"), says("yes"), user("yes"), says("so"))


def test_a_turn_that_a_template_leaves_out_has_nothing_to_train() -> None:
    assert trained(WITHOUT, user("hi"), says("yes"), user("why"), says("so")) == ["", ""]


def test_a_beginning_without_the_user_needs_a_template_that_takes_it() -> None:
    assert trained(ALL["chatml"], says("Hi!"), user("Hi")) == ["Hi!<|im_end|>\n"]
    first = (
        "{% if messages[0].role %}{% endif %}{{ messages[0].content.upper() }}{% for m in messages %}{{ m.content }}|"
    )
    with pytest.raises(DataError, match=r"refuses what stands before turn 1 \(assistant\).*begin with the user"):
        trained(first + "{% endfor %}", says("Hi!"), user("Hi"))


# NeMo's labels


@pytest.mark.parametrize("name", ["extra_id", "nemo"])
def test_labels_decide_what_is_trained(name: str) -> None:
    turn = {"extra_id": "<extra_id_1>", "nemo": "\x11"}[name]
    before = says("Yes", label="good", type="VALUE_TO_TEXT")
    assert trained(SOURCES[name], user("Hi"), before, user("Why?"), before) == [f"Yes\n{turn}"] * 2
    behind = says("Yes", label="good", type="TEXT_TO_VALUE")
    assert trained(SOURCES[name], user("Hi"), behind, user("Why?"), behind) == [f"good\n{turn}"] * 2


def test_a_template_without_labels_is_refused_where_a_row_has_them() -> None:
    with pytest.raises(DataError, match=r"has a label \(TEXT_TO_VALUE\).*chat_template=extra_id or nemo"):
        trained(ALL["chatml"], user("Hi"), says("Yes", label="good", type="TEXT_TO_VALUE"))
    assert trained(ALL["chatml"], user("Hi"), says("Yes", label="good")) == ["Yes<|im_end|>\n"]
