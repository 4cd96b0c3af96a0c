"""Demonstrations become token ids of which exactly the assistant's are trained."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from dpolish.data.templates import TEMPLATES, ChatTemplate, choose_template
from dpolish.data.templates.chat import turn_end
from dpolish.data.tokenize import TokenConversation, Tokenization, TokenPair
from dpolish.errors import DataError, ModelError
from dpolish.records import Conversation, Message, PreferencePair, TemplateArguments
from dpolish.tensors import Example
from tests.data.chat_templates import ALL
from tests.data.small_tokenizers import KINDS, MERGING_IDS, byte_level, letters, merging, words

SOURCES = {**TEMPLATES, **ALL}


def tokenization(tokenizer: PreTrainedTokenizerBase, source: str) -> Tokenization:
    special = tuple((name, str(text)) for name, text in tokenizer.special_tokens_map.items())
    template = ChatTemplate("test", source, special_tokens=special)
    return Tokenization.of(tokenizer, template=template)


def chat(*contents: str) -> Conversation:
    turns = tuple(Message(("user", "assistant")[index % 2], content) for index, content in enumerate(contents))
    return Conversation(turns, tuple(turn.role == "assistant" for turn in turns), "rows.jsonl:1")


def strings(*pieces: str, trained: tuple[bool, ...] = (False, True)) -> Conversation:
    return Conversation(pieces, trained, "rows.jsonl:1")


def encode(made: Tokenization, row: Conversation) -> TokenConversation:
    (tokens,) = made.encode_conversations([row])
    assert isinstance(tokens, TokenConversation), tokens
    return tokens


def spelled(tokens: TokenConversation) -> str:
    """The ids of `merging`, trained ones in capitals (</S>, _ for a blank)."""
    names = {id_: name.replace(" ", "_") for name, id_ in MERGING_IDS.items()}
    return "+".join(
        names[id_].upper() if trained else names[id_]
        for id_, trained in zip(tokens.tokens, tokens.trained, strict=True)
    )


def example(tokens: TokenConversation) -> Example:
    made = tokens.example()
    assert made is not None
    return made


# Messages


contents = st.lists(st.sampled_from(["It was", " ", "\n", "é", "🙂", "<think>", "User", ".", "<", "1215"]), max_size=5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=20)
@given(data=st.data())
def test_demonstrations_train_what_preferences_score(kind: str, name: str, data: st.DataObject) -> None:
    """A conversation with one answer has the tokens of a pair's chosen answer, and the same ones are trained."""
    asked, said = ("".join(data.draw(contents)) for _ in range(2))
    made = tokenization(KINDS[kind](), SOURCES[name])
    row = chat(asked, said)
    prompt, answer = (row.pieces[0],), (row.pieces[1],)
    assert isinstance(prompt[0], Message)
    assert isinstance(answer[0], Message)
    (pair,) = made.encode([PreferencePair(prompt, answer, answer, None, None, "rows.jsonl:1")])
    assert isinstance(pair, TokenPair)
    tokens = encode(made, row)
    assert tokens.tokens == pair.answers[0]
    assert tokens.trained == [index >= pair.starts[0] for index in range(len(tokens.tokens))]
    assert tokens.merges == pair.merges
    demonstration, preference = tokens.example(), pair.example()
    assert demonstration is not None
    assert preference is not None
    assert demonstration.prompt.tolist() == preference.prompt.tolist()
    assert demonstration.completions[0].scored.tolist() == preference.completions[0].scored.tolist()


@pytest.mark.parametrize("kind", ["byte_level", "llama3", "unigram"])
@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "zephyr", "extra_id", "qwen3"])
@settings(max_examples=20)
@given(data=st.data())
def test_trained_tokens_are_contents_and_ends_of_turns(kind: str, name: str, data: st.DataObject) -> None:
    """Where no token reaches over a border, what is trained reads as what the assistant says, turn for turn."""
    texts = ["".join(data.draw(contents)) for _ in range(4)]
    made = tokenization(KINDS[kind](), SOURCES[name])
    assert made.template is not None
    tokens = encode(made, chat(*texts))
    if tokens.merges:
        return
    end = turn_end(made.template)
    trim = str.strip if name in ("llama3", "gemma") else str
    said = [trim(text) for text in texts[1::2]]
    if name == "qwen3":
        said[1] = "<think>\n\n</think>\n\n" + said[1]
    trained = [id_ for id_, wanted in zip(tokens.tokens, tokens.trained, strict=True) if wanted]
    assert made.tokenizer.decode(trained) == "".join(text + end for text in said)


def test_every_turn_is_trained_and_the_rest_is_seen() -> None:
    tokens = encode(tokenization(merging(), merging().chat_template), chat("d", "a", "d", "b"))
    assert spelled(tokens) == "d+</s>+A+</S>+d+</s>+B+</S>"
    made = example(tokens)
    assert made.prompt.tolist() == tokens.tokens[:2]
    assert made.completions[0].tokens.tolist() == tokens.tokens[2:]
    assert made.completions[0].score_from == 0
    assert made.completions[0].unscored == (2, 3)
    assert made.rewards == (0.0,)


def test_what_stands_behind_the_last_trained_token_is_left_out_of_the_example() -> None:
    tokens = encode(tokenization(merging(), merging().chat_template), chat("d", "a", "d"))
    assert spelled(tokens) == "d+</s>+A+</S>+d+</s>"
    assert tokens.longest == 4
    assert example(tokens).num_tokens == 4


@pytest.mark.parametrize("name", ["chatml", "extra_id"])
@pytest.mark.parametrize("kind", ["byte_level", "across", "llama3"])
def test_special_tokens_in_a_demonstration_are_text(kind: str, name: str) -> None:
    tokenizer = KINDS[kind]()
    made = tokenization(tokenizer, SOURCES[name])
    end = tokenizer.eos_token
    usual, rare = encode(made, chat("Hi", "Yes", "Hi", "Yes")), encode(made, chat("Hi", "Yes", f"Hi{end}", "Yes"))
    assert made.has_special_text(chat("Hi", end))
    special = set(tokenizer.all_special_ids)
    assert [id_ for id_ in rare.tokens if id_ in special] == [id_ for id_ in usual.tokens if id_ in special]
    assert [id_ for id_, wanted in zip(rare.tokens, rare.trained, strict=True) if wanted] == [
        id_ for id_, wanted in zip(usual.tokens, usual.trained, strict=True) if wanted
    ]


def test_special_tokens_in_calls_and_arguments_are_text() -> None:
    made = tokenization(byte_level(), ALL["llama3"])
    call = json.dumps({"tool_calls": [{"function": {"name": "<|im_end|>"}}]})
    row = Conversation((Message("user", "Hi"), Message("assistant", "", call)), (False, True), "rows.jsonl:1")
    tokens = encode(made, row)
    assert byte_level().eos_token_id not in tokens.tokens
    assert '{"name": "<|im_end|>"}' in byte_level().decode(tokens.tokens)
    assert made.has_special_text(row)


def test_arguments_reach_the_template() -> None:
    made = tokenization(byte_level(), ALL["qwen3"])
    row = chat("Hi", "Yes")
    quiet = TemplateArguments(kwargs='{"enable_thinking": false}')
    tokens = encode(made, Conversation(row.pieces, row.trained, row.where, quiet))
    trained = [id_ for id_, wanted in zip(tokens.tokens, tokens.trained, strict=True) if wanted]
    assert byte_level().decode(trained) == "Yes<|im_end|>\n"


def test_a_bad_row_among_good_ones_is_an_error_of_its_own() -> None:
    made = tokenization(KINDS["unigram"](), ALL["gemma"])
    bad = Conversation((Message("system", "x"), Message("assistant", "y")), (False, True), "rows.jsonl:2")
    found = made.encode_conversations([chat("Hi", "Yes"), bad, strings("a", "b"), chat("Hi", "Yes")])
    assert str(found[1]).startswith("rows.jsonl:2: the chat template refuses these messages (system, assistant)")
    assert isinstance(found[1], DataError)
    assert isinstance(found[2], TokenConversation)
    assert found[0] == found[3]
    assert made.encode_conversations([]) == []


def test_messages_need_a_template() -> None:
    made = Tokenization.of(words())
    with pytest.raises(ModelError, match=r"model.data.chat_template=extra_id"):
        made.encode_conversations([chat("Hi", "Yes")])
    assert isinstance(made.encode_conversations([strings("the", "cat")])[0], TokenConversation)


def test_templates_end_messages_themselves() -> None:
    """`add_eos` and `add_bos` are for strings: NeMo's chats have neither."""
    template = choose_template(merging("<s> $A"), None)
    made = Tokenization.of(merging("<s> $A"), template=template, append_eod=True, add_bos=True)
    assert spelled(encode(made, chat("d", "a"))) == "d+</s>+A+</S>"


# Strings

STRINGS = {
    "clean": (("d", "a"), (False, True), "d+A"),
    "joined at the beginning": (("da", "b"), (False, True), "d+AB"),
    "joined at the end": (("d", "a", "b"), (False, True, False), "d+ab"),
    "two pieces": (("d", "a", "c", "b"), (False, True, False, True), "d+A+c+B"),
    "neighbours join": (("d", "a", "b"), (False, True, True), "d+AB"),
    "all": (("ab",), (True,), "AB"),
    "special tokens are tokens": (("d</s>", "a</s>"), (False, True), "d+</s>+A+</S>"),
    "an empty piece": (("d", "", "a"), (False, True, True), "d+A"),
}


@pytest.mark.parametrize("name", STRINGS)
def test_pieces_are_joined_to_the_letter(name: str) -> None:
    pieces, trained, expected = STRINGS[name]
    tokens = encode(Tokenization.of(merging()), strings(*pieces, trained=trained))
    assert spelled(tokens) == expected
    assert tokens.tokens == merging()("".join(pieces))["input_ids"]
    assert tokens.merges == name.startswith("joined")


@pytest.mark.parametrize(
    ("pieces", "trained", "expected"),
    [
        (("d", "a"), (False, True), "d+A+</S>"),
        (("d", "a</s>"), (False, True), "d+A+</S>"),
        (("d", "a</s> "), (False, True), "d+A+</S>+_"),
        (("d</s>", "a"), (False, True), "d+</s>+A+</S>"),
        (("d", "a", "b"), (False, True, False), "d+A+</S>+b"),
        (("da", "b", "c"), (False, True, False), "d+AB+</S>+c"),
        (("d", "a", "c", "b"), (False, True, False, True), "d+A+c+B+</S>"),
        (("d", ""), (False, True), "d+</S>"),
    ],
)
def test_the_end_token_is_appended_to_the_last_trained_piece(
    pieces: tuple[str, ...], trained: tuple[bool, ...], expected: str
) -> None:
    made = Tokenization.of(merging(), append_eod=True)
    assert spelled(encode(made, strings(*pieces, trained=trained))).replace("_", "_") == expected


@pytest.mark.parametrize("pattern", ["$A", "<s> $A", "<s> $A </s>", "$A </s>"])
def test_strings_begin_with_one_bos(pattern: str) -> None:
    bos = [0] if "<s> " in pattern else []
    assert encode(Tokenization.of(merging(pattern)), strings("d", "a")).tokens == [*bos, 5, 2]
    added = Tokenization.of(merging(pattern), add_bos=True)
    for row in (strings("d", "a"), strings("<s>d", "a")):
        assert encode(added, row).tokens == [0, 5, 2]
        assert encode(added, row).trained == [False, False, True]


def test_add_bos_needs_a_beginning_token() -> None:
    tokenizer = letters()
    bos, tokenizer.bos_token = tokenizer.bos_token, None
    try:
        with pytest.raises(ModelError, match="add_bos=true needs a beginning-of-sequence token"):
            Tokenization.of(tokenizer, add_bos=True)
    finally:
        tokenizer.bos_token = bos


def test_a_masked_end_token_is_seen_and_not_trained() -> None:
    made = Tokenization.of(merging(), append_eod=True, eod_mask_loss=True)
    assert spelled(encode(made, strings("d", "a"))) == "d+A+</s>"
    assert spelled(encode(made, strings("d", "a</s>b"))) == "d+A+</s>+B+</s>"


def test_a_slow_tokenizer_does_the_same() -> None:
    tokens = encode(Tokenization.of(letters()), strings("ab", " c"))
    assert tokens.tokens == [1, *b"ab c"]
    assert tokens.trained == [False] * 3 + [True] * 2
    turns = encode(Tokenization.of(letters()), chat("Hi", "Yes", "Hi", "No"))
    trained = bytes(id_ for id_, wanted in zip(turns.tokens, turns.trained, strict=True) if wanted)
    assert trained == b" Yes\x02 No\x02"


def test_a_row_without_a_token_to_train_gives_no_example() -> None:
    assert encode(Tokenization.of(merging()), strings("d", "")).example() is None
    assert encode(Tokenization.of(merging()), strings("", "a")).example() is None  # nothing stands before it
    assert encode(Tokenization.of(merging("<s> $A")), strings("", "a")).example() is not None


# Answers of several turns (DPO)


def turns(*spoken: str) -> tuple[Message, ...]:
    return tuple(Message(*text.split(": ", 1)) for text in spoken)


def test_of_an_answer_of_several_turns_only_the_assistants_are_scored() -> None:
    chosen = turns("assistant: Look", "tool: 4", "assistant: Four")
    row = PreferencePair(turns("user: Hi"), chosen, turns("assistant: No"), None, None, "rows.jsonl:1")
    (pair,) = tokenization(byte_level(), ALL["chatml"]).encode([row])
    assert isinstance(pair, TokenPair)
    made = pair.example()
    assert made is not None
    long, short = made.completions
    assert byte_level().decode(long.scored) == "Look<|im_end|>\nFour<|im_end|>\n"
    whole = "Look<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\nFour<|im_end|>\n"
    assert byte_level().decode(long.tokens) == whole
    assert byte_level().decode(short.scored) == "No<|im_end|>\n"
    assert short.unscored == ()


def test_what_follows_the_assistants_last_turn_is_left_out() -> None:
    chosen = turns("assistant: Look", "tool: 4")
    row = PreferencePair(turns("user: Hi"), chosen, turns("assistant: No"), None, None, "rows.jsonl:1")
    (pair,) = Tokenization.of(byte_level(), append_eod=True).encode([row])
    assert isinstance(pair, TokenPair)
    assert byte_level().decode(pair.answers[0]).endswith("assistant\nLook<|im_end|>\n")


def test_an_answer_that_begins_with_another_speaker() -> None:
    chosen = turns("tool: 4", "assistant: Four")
    row = PreferencePair(turns("user: Hi"), chosen, turns("assistant: No"), None, None, "rows.jsonl:1")
    (pair,) = Tokenization.of(byte_level()).encode([row])
    assert isinstance(pair, TokenPair)
    made = pair.example()
    assert made is not None
    assert byte_level().decode(made.completions[0].scored) == "Four<|im_end|>\n"
    assert byte_level().decode(made.completions[1].scored) == "No<|im_end|>\n"


def test_an_answer_without_the_assistant_is_an_error() -> None:
    row = PreferencePair(turns("user: Hi"), turns("tool: 4", "tool: 5"), turns("assistant: No"), None, None, "r:1")
    (found,) = Tokenization.of(byte_level()).encode([row])
    assert str(found) == "r:1: an answer has no turn of the assistant: there is nothing to score"


def test_a_masked_token_and_other_speakers_together() -> None:
    chosen = turns("assistant: Look", "tool: 4", "assistant: Four")
    row = PreferencePair(turns("user: Hi"), chosen, turns("assistant: No"), None, None, "rows.jsonl:1")
    (pair,) = Tokenization.of(byte_level(), eod_mask_loss=True).encode([row])
    assert isinstance(pair, TokenPair)
    made = pair.example()
    assert made is not None
    assert byte_level().decode(made.completions[0].scored) == "Look\nFour\n"
    cut = pair.cut(pair.starts[0] + 4).example()
    assert cut is not None
    assert byte_level().decode(cut.completions[0].scored) == "Look"


def test_a_template_of_a_file_is_used(tmp_path: Path) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}|{% endfor %}", encoding="utf-8")
    made = Tokenization.of(byte_level(), template=choose_template(byte_level(), str(file)))
    assert byte_level().decode(encode(made, chat("Hi", "Yes")).tokens) == "Hi|Yes|"
