"""Row → text → tokens → trained, for every kind of template with every kind of tokenizer, as read and found right.

In tests/golden/templates each template has a file. Under the name of a row stands its text (with the special tokens of
`byte_level`), then for each tokenizer its tokens with │ between them and * before the trained ones.
`DPOLISH_WRITE_GOLDEN=1` writes the files anew: read the diff.
"""

import os
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from dpolish.data.templates import TEMPLATES, choose_template, render_turns
from dpolish.data.tokenize import Tokenization, marked_tokens
from dpolish.errors import DataError
from dpolish.records import Conversation, Message
from tests.data.chat_templates import FOREIGN
from tests.data.small_tokenizers import KINDS, byte_level

FOLDER = Path(__file__).parents[2] / "golden" / "templates"
SOURCES = {**TEMPLATES, **FOREIGN}


def turns(*contents: str, system: str | None = None) -> tuple[Message, ...]:
    spoken = tuple(Message(("user", "assistant")[index % 2], content) for index, content in enumerate(contents))
    return spoken if system is None else (Message("system", system), *spoken)


ROWS = {
    "one turn": turns("Which year?", "It was 1215."),
    "system": turns("Hi", "Café 東 🙂", system="Be kind."),
    "two turns": turns("Which year?", "It was 1215.", "User\nWhy?", "It was 1215."),
    "blanks": turns(" Hi ", "\n It was 1215. ", "\n", " "),
    "thoughts": turns("Hi", "<think>\nHm.\n</think>\n\nYes.", "Why?", "<think>\nOh.\n</think>\n\nIt was."),
    "special tokens": turns("<|im_end|><s>", "It is <|eot_id|>, <|end|>, </s>."),
}
LABELS = {
    "label before": (
        *turns("Which year?"),
        Message("assistant", "It was.", '{"label": "good", "type": "VALUE_TO_TEXT"}'),
    ),
    "label behind": (
        *turns("Which year?"),
        Message("assistant", "It was.", '{"label": "good", "type": "TEXT_TO_VALUE"}'),
    ),
}
"""For the templates that write them."""


def conversation(messages: tuple[Message, ...]) -> Conversation:
    return Conversation(messages, tuple(message.role == "assistant" for message in messages), "rows.jsonl:1")


def tokenization_with(tokenizer: PreTrainedTokenizerBase, source: str, folder: Path) -> Tokenization:
    file = folder / "template.jinja"
    file.write_text(source, encoding="utf-8")
    return Tokenization.of(tokenizer, template=choose_template(tokenizer, str(file)))


def shown(tokenization: Tokenization, row: Conversation) -> str:
    try:
        (tokens,) = marked_tokens(tokenization, row)
    except DataError as error:
        return f"error: {error}"
    return "│".join(("*" if kind == "trained" else "") + repr(text)[1:-1] for text, kind in tokens)


def rendered(tokenization: Tokenization, messages: tuple[Message, ...]) -> str:
    assert tokenization.template is not None
    try:
        return tokenization.template.render(messages, generate=False)
    except DataError as error:
        return str(error)


def golden(name: str, folder: Path) -> str:
    lines = []
    for title, messages in (ROWS | (LABELS if name in TEMPLATES else {})).items():
        text = rendered(tokenization_with(byte_level(), SOURCES[name], folder), messages)
        lines += [f"== {title}", "", f"{'text':12}{text!r}"]
        for kind, make in KINDS.items():
            tokenization = tokenization_with(make(), SOURCES[name], folder)
            lines += [f"{kind:12}{shown(tokenization, conversation(messages))}"]
        lines.append("")
    return "\n".join(lines)


@pytest.mark.parametrize("name", SOURCES)
def test_rows_become_the_tokens_that_were_read_and_found_right(name: str, tmp_path: Path) -> None:
    made, file = golden(name, tmp_path), FOLDER / f"{name}.txt"
    if os.environ.get("DPOLISH_WRITE_GOLDEN"):
        file.write_text(made, encoding="utf-8")
    assert made == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOURCES)
def test_the_tokens_are_the_tokenizers_own(name: str, kind: str, tmp_path: Path) -> None:
    """A whole conversation has the ids that apply_chat_template gives it, where no content has a special token."""
    tokenizer = KINDS[kind]()
    tokenization = tokenization_with(tokenizer, SOURCES[name], tmp_path)
    for title, messages in ROWS.items():
        if title == "special tokens" or (name == "gemma" and title == "system"):
            continue
        turns = [{"role": message.role, "content": message.content} for message in messages]
        theirs = tokenizer.apply_chat_template(turns, chat_template=SOURCES[name], tokenize=True)["input_ids"]
        (ours,) = tokenization.encode_conversations([conversation(messages)])
        assert not isinstance(ours, DataError), title
        assert ours.tokens == theirs, title


def test_a_real_tokenizer_trains_what_the_assistant_says(smollm2: PreTrainedTokenizerBase) -> None:
    template = choose_template(smollm2)
    assert template is not None
    assert template.stop == "<|im_end|>"
    row = conversation(ROWS["two turns"])
    (tokens,) = marked_tokens(Tokenization.of(smollm2), row)
    trained = [text for text, kind in tokens if kind == "trained"]
    assert "".join(trained) == "It was 1215.<|im_end|>\nIt was 1215.<|im_end|>\n"
    whole = render_turns(template, row.pieces, row.trained).text  # type: ignore[arg-type]
    assert "".join(text for text, _ in tokens) == whole
