"""Pairs become the token ids that the model would see, scored from each answer's own boundary."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from dpolish.data.tokenize import Tokenization, TokenPair, check_vocabulary
from dpolish.errors import DataError, ModelError
from dpolish.records import Message, PreferencePair, Prompt, Response
from dpolish.tensors import Example
from tests.data.small_tokenizers import MERGING_IDS, byte_level, letters, merging, metaspace, words

CHAT_TOKENIZERS = {"byte-level": byte_level, "metaspace": metaspace, "slow": letters}


def pair(prompt: Prompt, chosen: Response, rejected: Response) -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, None, None, "rows.jsonl:1")


def chat(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return pair((Message("user", prompt),), (Message("assistant", chosen),), (Message("assistant", rejected),))


def encode(tokenizer: PreTrainedTokenizerBase, row: PreferencePair, *, append_eod: bool = False) -> TokenPair:
    (tokens,) = Tokenization.of(tokenizer, append_eod=append_eod).encode([row])
    assert isinstance(tokens, TokenPair)
    return tokens


def example(tokenizer: PreTrainedTokenizerBase, row: PreferencePair, *, append_eod: bool = False) -> Example:
    made = encode(tokenizer, row, append_eod=append_eod).example()
    assert made is not None
    return made


def ids(text: str) -> list[int]:
    """The ids of `merging`, written with `+` between tokens."""
    return [MERGING_IDS[token] for token in text.split("+")]


# Boundaries. Each case: prompt, chosen, rejected; shared prompt; each answer's tokens; each answer's scored tokens.

BOUNDARIES = {
    "clean": (("d", "a", "b"), "d", ("a", "b"), ("a", "b")),
    "both answers join": (("da", "b", "bc"), "d", ("ab", "abc"), ("ab", "abc")),
    "chosen alone joins": (("da", "b", "d"), "d", ("ab", "a+d"), ("ab", "d")),
    "rejected alone joins": (("da", "d", "bd"), "d", ("a+d", "ab+d"), ("d", "ab+d")),
    "answers share their beginning": (("d", "ca", "cb"), "d", ("c+a", "c+b"), ("c+a", "c+b")),
    "a longer joint token": (("dab", "c", "d"), "d", ("abc", "ab+d"), ("abc", "d")),
}


@pytest.mark.parametrize(("row", "shared", "answers", "scored"), BOUNDARIES.values(), ids=BOUNDARIES.keys())
def test_scoring_starts_at_each_answers_own_boundary(
    row: tuple[str, str, str], shared: str, answers: tuple[str, str], scored: tuple[str, str]
) -> None:
    made = example(merging(), pair(*row))
    assert made.prompt.tolist() == ids(shared)
    assert [completion.tokens.tolist() for completion in made.completions] == [ids(answer) for answer in answers]
    assert [completion.scored.tolist() for completion in made.completions] == [ids(answer) for answer in scored]
    assert made.prompt.dtype == np.int32
    assert made.completions[0].tokens.dtype == np.int32
    assert encode(merging(), pair(*row)).merges == (len(shared.split("+")) < len(merging()(row[0])["input_ids"]))


def test_what_nothing_precedes_is_not_scored() -> None:
    made = example(merging(), pair("a", "bd", "cd"))  # ab+d, a+c+d: nothing is shared
    assert made.prompt.tolist() == []
    assert [completion.tokens.tolist() for completion in made.completions] == [ids("ab+d"), ids("a+c+d")]
    assert [completion.scored.tolist() for completion in made.completions] == [ids("d"), ids("c+d")]
    assert encode(merging(), pair("a", "b", "cd")).example() is None  # `ab` is all there is
    with_bos = example(merging("<s> $A"), pair("a", "b", "cd"))
    assert with_bos.prompt.tolist() == ids("<s>")
    assert with_bos.completions[0].scored.tolist() == ids("ab")


answer_texts = st.text("abcd ", min_size=1, max_size=8)


@given(answer_texts, answer_texts, answer_texts, st.booleans())
def test_prompt_and_answer_are_tokenised_together(prompt: str, chosen: str, rejected: str, bos: bool) -> None:
    tokenizer = merging("<s> $A") if bos else merging()
    tokens = encode(tokenizer, pair(prompt, chosen, rejected))
    made = tokens.example()
    whole = [tokenizer(prompt + answer)["input_ids"] for answer in (chosen, rejected)]
    assert list(tokens.answers) == whole
    if made is None:
        assert not bos
        assert min(map(len, whole)) == 1
        return
    alone = tokenizer(prompt)["input_ids"]
    for completion, full in zip(made.completions, whole, strict=True):
        assert [*made.prompt.tolist(), *completion.tokens.tolist()] == full
        boundary = len(made.prompt) + completion.score_from
        agreed = next(
            (i for i, (a, b) in enumerate(zip(alone, full, strict=False)) if a != b), min(len(alone), len(full))
        )
        assert boundary == max(agreed, 1)
    shared = len(made.prompt)
    assert shared == len(alone) or any(full[shared] != alone[shared] for full in whole)


# What a tokenizer puts around a string


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [("$A", ()), ("<s> $A", (1,)), ("<s> $A </s>", (1,)), ("$A </s>", ()), ("<s> <s> $A", (1, 1))],
)
def test_strings_get_the_tokenizers_prefix_and_no_suffix(pattern: str, prefix: tuple[int, ...]) -> None:
    assert Tokenization.of(words(pattern)).prefix_ids == prefix
    made = example(words(pattern), pair("the cat", " sat .", " ran ."))
    assert made.prompt.tolist() == [*prefix, 3, 4]
    assert [completion.tokens.tolist() for completion in made.completions] == [[5, 11], [10, 11]]


def test_a_prefix_that_is_written_is_not_put_twice() -> None:
    written = example(words("<s> $A"), pair("<s> the cat", " sat", " ran"))
    assert written.prompt.tolist() == [1, 3, 4]


def test_special_tokens_written_in_strings_are_tokens() -> None:
    made = example(words("<s> $A </s>"), pair("the</s>cat", " sat</s>", " ran"))
    assert made.prompt.tolist() == [1, 3, 2, 4]
    assert made.completions[0].tokens.tolist() == [5, 2]


def test_messages_get_nothing_that_the_template_does_not_write() -> None:
    made = example(metaspace(), chat("Which year?", "1215", "No"))
    assert made.prompt[:2].tolist().count(1) == 1  # the template's own BOS, once
    bare = example(merging("<s> $A </s>"), chat("a", "d", "c"))
    assert bare.prompt.tolist() == ids("a+</s>")
    assert bare.completions[0].tokens.tolist() == ids("d+</s>")


def test_a_slow_tokenizer_does_the_same() -> None:
    made = example(letters(), pair("ab", " c", "!"))
    assert made.prompt.tolist() == [1, ord("a"), ord("b")]
    assert [completion.tokens.tolist() for completion in made.completions] == [[ord(" "), ord("c")], [ord("!")]]


@pytest.mark.parametrize("name", CHAT_TOKENIZERS)
def test_messages_are_tokenised_as_the_library_does(name: str) -> None:
    tokenizer = CHAT_TOKENIZERS[name]()
    messages = [{"role": "user", "content": "Which year?"}, {"role": "assistant", "content": "It was 1215."}]
    tokens = encode(tokenizer, chat("Which year?", "It was 1215.", "I refuse."))
    whole = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=True, add_generation_prompt=True)["input_ids"]
    assert tokens.answers[0] == whole
    assert tokens.prompt == prompt


# End of sequence


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("c", "c+</s>"), ("c</s>", "c+</s>"), ("c</s> ", "c+</s>+ "), ("c</s>c", "c+</s>+c+</s>"), ("</s>", "</s>")],
)
def test_the_end_token_is_appended_once(answer: str, expected: str) -> None:
    made = example(merging(), pair("d", answer, "b"), append_eod=True)
    assert made.completions[0].tokens.tolist() == ids(expected)
    assert made.completions[1].tokens.tolist() == ids("b+</s>")
    assert example(merging(), pair("d", "c", "b")).completions[0].tokens.tolist() == ids("c")


def test_an_end_token_in_the_prompt_does_not_count() -> None:
    made = example(merging(), pair("d</s>", " ", "c"), append_eod=True)
    assert made.completions[0].tokens.tolist() == ids(" +</s>")


def test_an_answer_that_the_template_ends_gets_no_second_end() -> None:
    made = example(byte_level(), chat("Hi", "Yes", "No"), append_eod=True)
    assert made.completions[0].tokens.tolist().count(byte_level().eos_token_id) == 1


def test_append_eod_needs_an_end_token() -> None:
    tokenizer = letters()
    eos, tokenizer.eos_token = tokenizer.eos_token, None
    try:
        with pytest.raises(ModelError, match="append_eod=true needs an end-of-sequence token"):
            Tokenization.of(tokenizer, append_eod=True)
    finally:
        tokenizer.eos_token = eos


# Rewards


def test_rewards_come_from_the_row_or_the_defaults() -> None:
    tokenization = Tokenization.of(words(), default_chosen_reward=2.0, default_rejected_reward=-2.0)
    rows = [
        PreferencePair("the", "cat", "dog", *rewards, "f:1") for rewards in ((None, None), (0.0, None), (None, 5.0))
    ]
    tokens = tokenization.encode(rows)
    assert [pair.rewards for pair in tokens if isinstance(pair, TokenPair)] == [(2.0, -2.0), (0.0, -2.0), (2.0, 5.0)]


# Special tokens within messages


@pytest.mark.parametrize("name", CHAT_TOKENIZERS)
@given(data=st.data())
def test_special_tokens_in_contents_are_text(name: str, data: st.DataObject) -> None:
    tokenizer = CHAT_TOKENIZERS[name]()
    special = [text for text in tokenizer.all_special_tokens if text != "<unk>"]
    parts = st.lists(st.sampled_from([*special, "<think>", "year", " ", "\n", "<|", "the"]), max_size=5).map("".join)
    row = chat(*(data.draw(parts) for _ in range(3)))
    tokens = encode(tokenizer, row)
    plain = encode(tokenizer, chat("year", "the", "year"))
    special_ids = set(tokenizer.convert_tokens_to_ids(special))

    def own(ids: list[int]) -> list[int]:
        return [id_ for id_ in ids if id_ in special_ids]

    assert own(tokens.prompt) == own(plain.prompt)  # the template's, and no other
    assert own(tokens.answers[0]) == own(plain.answers[0])
    if name == "byte-level":  # every byte comes back, and tokens that are not special stay tokens
        thinks = tokenizer.convert_tokens_to_ids("<think>")
        content = "".join(message.content for message in row.prompt if isinstance(message, Message))
        assert tokenizer.decode(tokens.prompt) == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
        assert tokens.prompt.count(thinks) == content.count("<think>")


@pytest.mark.parametrize("name", CHAT_TOKENIZERS)
@given(data=st.data())
def test_the_rare_path_equals_the_usual_one(name: str, data: st.DataObject) -> None:
    """A special token in the rejected answer sends the whole row down the rare path; the others must not change."""
    tokenizer = CHAT_TOKENIZERS[name]()
    texts = st.lists(st.sampled_from(["<think>", "year", " ", "\n", "<|", "the", "é", "🙂"]), max_size=6).map("".join)
    prompt, chosen = data.draw(texts), data.draw(texts)
    usual = encode(tokenizer, chat(prompt, chosen, "the"))
    rare = encode(tokenizer, chat(prompt, chosen, f"the {tokenizer.eos_token}"))
    assert rare.prompt == usual.prompt
    assert rare.answers[0] == usual.answers[0]
    assert rare.starts[0] == usual.starts[0]


def test_the_rare_path_agrees_with_the_library() -> None:
    tokenizer = byte_level()
    content = "the <|im_end|>\n<|im_start|>user the"
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    tokens = encode(tokenizer, chat(content, content, "No"))
    theirs = tokenizer.apply_chat_template(messages, tokenize=True, sanitize_control_tokens=True)["input_ids"]
    assert tokens.answers[0] == theirs


def test_a_special_token_that_has_no_other_writing_is_refused() -> None:
    tokenizer = words()
    tokenizer.add_special_tokens({"additional_special_tokens": ["dog"]})
    tokenizer.chat_template = "{{ messages[0].content }}"
    (error,) = Tokenization.of(tokenizer).encode([chat("a dog", "cat", "mat")])
    assert isinstance(error, DataError)
    assert str(error) == "rows.jsonl:1: a message contains 'dog', which the tokenizer cannot write as text: remove it"
    words.cache_clear()  # this one has learnt a word


def test_rows_with_special_text_are_known() -> None:
    tokenization = Tokenization.of(byte_level())
    assert tokenization.has_special_text(chat("Hi", "<|im_end|>", "No"))
    assert not tokenization.has_special_text(chat("Hi", "Yes", "No"))
    assert not tokenization.has_special_text(pair("<|im_end|>", "Yes", "No"))


# Batches and errors


def test_a_bad_row_among_good_ones_is_an_error_of_its_own() -> None:
    good = chat("Hi", "Yes", "No")
    system = PreferencePair((Message("system", "x"),), good.chosen, good.rejected, None, None, "rows.jsonl:2")
    special = chat("Hi <s>", "Yes", "No")
    text = pair("the", "cat", "dog")
    rows = [good, system, special, text, good]
    found = Tokenization.of(metaspace()).encode(rows)
    assert isinstance(found[1], DataError)
    assert str(found[1]).startswith("rows.jsonl:2: the chat template refuses these messages (system")
    assert "only user and assistant here" in str(found[1])
    alone = [Tokenization.of(metaspace()).encode([row])[0] for row in rows]
    assert [tokens for i, tokens in enumerate(found) if i != 1] == [tokens for i, tokens in enumerate(alone) if i != 1]
    assert Tokenization.of(metaspace()).encode([]) == []


def test_long_texts_raise_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    byte_level.cache_clear()  # each tokenizer warns once in its life
    assert byte_level().model_max_length == 32
    logging.getLogger("transformers").propagate = True
    try:
        tokens = encode(byte_level(), pair("the " * 100, "cat", "dog"))
    finally:
        logging.getLogger("transformers").propagate = False
    assert tokens.longest > 100
    assert not caplog.records


def test_truncation_and_padding_of_the_tokenizer_do_not_touch_rows() -> None:
    tokenizer = words("<s> $A")
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.padding_side, tokenizer.truncation_side = "left", "left"
    try:
        assert example(tokenizer, pair("the cat sat on", " a mat", " the dog")).longest == 7
    finally:
        words.cache_clear()


# Cutting


def test_a_cut_pair_keeps_its_boundaries() -> None:
    tokens = encode(words(), pair("the cat", " sat on a mat", " ran"))
    assert tokens.longest == 6
    cut = tokens.cut(4).example()
    assert cut is not None
    assert [completion.tokens.tolist() for completion in cut.completions] == [[5, 6], [10]]
    assert tokens.cut(2).example() is None
    assert tokens.cut(1).example() is None
    assert not tokens.cut(3).equal
    same = encode(words(), pair("the cat", " sat on", " sat ."))
    assert not same.equal
    assert same.cut(3).equal


# Ids beyond the model


def test_ids_beyond_the_vocabulary_name_row_and_token() -> None:
    made = [example(words(), pair("the cat", " sat", " ran")), example(words(), pair("the", " dog", " cat"))]
    where = ["rows.jsonl:1", "rows.jsonl:2"]
    check_vocabulary(made, where, 11, words())
    with pytest.raises(ModelError) as error:
        check_vocabulary(made, where, 9, words())
    assert "the model's vocabulary has 9 tokens" in str(error.value)
    assert "rows.jsonl:1: token 'ran' has the id 10" in str(error.value)
    assert "rows.jsonl:2: token 'dog' has the id 9" in str(error.value)
    with pytest.raises(ModelError, match=r"rows.jsonl:1: token 'cat' has the id 4"):
        check_vocabulary(made[:1], where[:1], 3, words())


def test_a_real_tokenizer_gives_the_expected_tokens(smollm2: PreTrainedTokenizerBase) -> None:
    made = example(smollm2, chat("What is 2+2? <|im_end|>", "4.", "Five."))
    names = smollm2.convert_ids_to_tokens(made.prompt.tolist())
    assert names.count("<|im_end|>") == 2  # the system's and the user's: not the one in the content
    assert "".join(names).endswith("<|im_end|>Ċ<|im_start|>assistantĊ")
    scored = [smollm2.convert_ids_to_tokens(completion.scored.tolist()) for completion in made.completions]
    assert scored == [["4", ".", "<|im_end|>", "Ċ"], ["Five", ".", "<|im_end|>", "Ċ"]]
