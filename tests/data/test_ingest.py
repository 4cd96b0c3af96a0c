"""Every row of every file is kept, or counted under a reason, or an error with its place."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from dpolish.data import summary as about
from dpolish.data.ingest import Ingested, OnOverlong, ingest, split_rows
from dpolish.data.kinds import Pairs
from dpolish.data.summary import Tally
from dpolish.data.tokenize import Tokenization
from dpolish.errors import ConfigError, DataError, ModelError
from tests.data.small_tokenizers import byte_level, merging, words

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data beside the checkout, ../shared/data")


def write(folder: Path, rows: Sequence[object], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def row(prompt: object, chosen: object, rejected: object, **more: object) -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(prompt: str, chosen: str, rejected: str) -> dict[str, object]:
    return row([says("user", prompt)], says("assistant", chosen), says("assistant", rejected))


def take(
    *paths: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seq_length: int = 100,
    on_overlong: OnOverlong = "drop",
    format: str | None = None,
) -> Ingested:
    tokenization = Tokenization.of(tokenizer or words())
    files = [(None, path) for path in paths]
    return ingest(files, Pairs(format), tokenization, seq_length=seq_length, on_overlong=on_overlong)


def dropped(data: Ingested, path: str) -> dict[str, list[int]]:
    """Line numbers by reason, where all of them are shown."""
    assert all(tally.count == len(tally.places) for tally in data.summary.dropped.values())
    lines = {name: tally.places for name, tally in data.summary.dropped.items()}
    return {name: [int(place.removeprefix(f"{path}:")) for place in places] for name, places in lines.items()}


def test_rows_become_examples_in_order(tmp_path: Path) -> None:
    first = write(tmp_path, [row("the", " cat", " dog"), row("a", " mat", " dog ran")], "a.jsonl")
    second = write(tmp_path, [chat("the dog", "sat", "ran .")], "b.jsonl")
    tokenizer = words()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    try:
        data = take(first, second, tokenizer=tokenizer)
    finally:
        words.cache_clear()
    assert data.where == (f"{first}:1", f"{first}:2", f"{second}:1")
    assert [example.prompt.tolist() for example in data.examples] == [[3], [8], [3, 9]]
    scored = [[completion.scored.tolist() for completion in example.completions] for example in data.examples]
    assert scored == [[[4], [9]], [[7], [9, 10]], [[5], [10, 11]]]
    assert [(source.path, source.rows) for source in data.sources] == [(first, range(2)), (second, range(2, 3))]
    assert data.sizes == (2, 1)
    assert data.weights is None
    tokens = data.summary.tokens
    assert (tokens.prompt, tokens.chosen, tokens.rejected, tokens.longest) == (4, 3, 5, 4)
    assert (tokens.shared, tokens.padded) == (12, 2 * 2 + 2 * 3 + 2 * 4)
    assert [file.format for file in data.summary.files] == ["trl", "trl"]


# What is dropped


def test_useless_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            row("the", " cat", " dog"),
            row("", "cat", "dog"),
            row(" \n", "cat", "dog"),
            row("the", "", "dog"),
            row("the", "cat", "\t "),
            row("the", " cat", " cat"),
            row("the", " cat", "  cat"),  # different letters, the same tokens
            row([], says("assistant", "cat"), says("assistant", "dog")),
            row([says("system", " "), says("user", "")], says("assistant", "cat"), says("assistant", "dog")),
            chat("the", "cat", " "),
            chat("the", "cat", "cat"),
        ],
    )
    data = take(path)
    assert data.where == (f"{path}:1",)
    assert dropped(data, path) == {
        about.EMPTY_PROMPT: [2, 3, 8, 9],
        about.EMPTY_ANSWER: [4, 5, 10],
        about.EQUAL_ANSWERS: [6, 7, 11],
    }
    assert data.summary.rows_read == 11
    assert data.summary.rows_kept == 1
    assert data.summary.rows_dropped == 10


def test_an_answer_without_a_token_to_score_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, [row("a", "b", "cd"), row("d", "b", "c")])  # `ab` is one token with nothing before it
    data = take(path, tokenizer=merging())
    assert dropped(data, path) == {about.NO_SCORED_TOKEN: [1]}
    assert take(path, tokenizer=merging("<s> $A")).summary.rows_kept == 2


def test_equality_after_the_template_counts(tmp_path: Path) -> None:
    tokenizer = words()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | lower | trim }} {% endfor %}"
    try:
        path = write(tmp_path, [chat("the", "Cat", "cat "), chat("the", "cat", "dog")])
        assert dropped(take(path, tokenizer=tokenizer), path) == {about.EQUAL_ANSWERS: [1]}
    finally:
        words.cache_clear()


LENGTHS = [row("the cat", " sat", " ran"), row("the cat", " sat on", " ran"), row("the cat", " a", " dog sat on")]


def test_prompt_with_longer_answer_decides_what_is_overlong(tmp_path: Path) -> None:
    path = write(tmp_path, LENGTHS)  # 3, 4 and 5 tokens; as packed pairs 4, 5 and 6
    assert dropped(take(path, seq_length=5), path) == {}
    assert dropped(take(path, seq_length=4), path) == {about.OVERLONG: [3]}
    assert dropped(take(path, seq_length=3), path) == {about.OVERLONG: [2, 3]}


def test_an_appended_end_token_counts_for_the_length(tmp_path: Path) -> None:
    tokenization = Tokenization.of(words(), append_eod=True)
    data = ingest([(None, write(tmp_path, LENGTHS))], Pairs(), tokenization, seq_length=4)
    assert data.summary.rows_kept == 1
    assert data.examples[0].completions[0].tokens.tolist() == [5, 2]


def test_overlong_rows_may_be_errors(tmp_path: Path) -> None:
    path = write(tmp_path, LENGTHS)
    with pytest.raises(DataError) as error:
        take(path, seq_length=3, on_overlong="error")
    assert f"{path}:2: 4 tokens of prompt and longer answer, over model.data.seq_length=3" in str(error.value)
    assert f"{path}:3: 5 tokens" in str(error.value)


def test_overlong_rows_may_be_truncated(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            row("the cat", " sat on a", " ran"),
            row("the cat", " sat on", " sat a"),  # equal within three tokens
            row("the cat sat", " on", " ran"),  # the prompt fills them
            row("the cat sat on", " a", " dog"),
            row("the", " cat", " dog"),
        ],
    )
    data = take(path, seq_length=3, on_overlong="truncate")
    assert dropped(data, path) == {about.EQUAL_ONCE_CUT: [2], about.NO_ROOM: [3, 4]}
    assert data.summary.remarks == {about.TRUNCATED: Tally(1, (f"{path}:1",))}
    assert [[c.tokens.tolist() for c in example.completions] for example in data.examples] == [[[5], [10]], [[4], [9]]]
    assert data.summary.tokens.longest == 3


texts = st.lists(st.sampled_from(["the", "cat", "sat", " ", ""]), max_size=5).map(" ".join)


@given(st.lists(st.tuples(texts, texts, texts), min_size=1), st.integers(2, 8), st.sampled_from(["drop", "truncate"]))
def test_no_row_vanishes_and_every_kept_one_can_be_trained_on(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    seq_length: int,
    on_overlong: OnOverlong,
) -> None:
    path = write(
        tmp_path_factory.getbasetemp(), [row("the", " cat", " dog"), *(row(*parts) for parts in rows)], "any.jsonl"
    )
    data = take(path, seq_length=seq_length, on_overlong=on_overlong)
    summary = data.summary
    assert summary.rows_read == len(rows) + 1
    assert summary.rows_kept + summary.rows_dropped == summary.rows_read
    assert len(data.examples) == len(data.where) == summary.rows_kept == sum(data.sizes)
    assert summary.dropped.keys() <= set(about.DROP_REASONS)
    for example in data.examples:
        assert example.longest <= seq_length
        assert all(len(completion.scored) > 0 for completion in example.completions)
        chosen, rejected = example.completions
        assert not np.array_equal(chosen.tokens, rejected.tokens)


# What is worth knowing of rows that are kept


def test_remarks_are_counted_with_their_places(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            chat("Hi", "Yes", "No"),
            chat("Hi <|im_end|>", "Yes", "No"),
            chat("Hi", "Yes", "<|im_start|>"),
            chat("Hi", "Y\0es", "No"),
            chat("Hi", "Yes", "No"),
            row("<|im_end|>", "Yes", "No"),
        ],
    )
    data = take(path, tokenizer=byte_level())
    assert data.summary.rows_kept == 6
    assert data.summary.remarks == {
        about.SPECIAL_TEXT: Tally(2, (f"{path}:2", f"{path}:3")),
        about.NUL_CHARACTERS: Tally(1, (f"{path}:4",)),
        about.REPEATED: Tally(1, (f"{path}:5",)),
    }


def test_boundary_merges_are_kept_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, [row("da", "b", "d"), row("d", "a", "c")])
    data = take(path, tokenizer=merging())
    assert data.summary.remarks == {about.BOUNDARY_MERGES: Tally(1, (f"{path}:1",))}
    assert data.examples[0].completions[1].score_from == 1  # its own boundary lies behind the shared prompt


def test_only_the_first_places_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, [row("the", " cat", " cat")] * 30 + [row("the", " cat", " dog")])
    tally = take(path).summary.dropped[about.EQUAL_ANSWERS]
    assert tally.count == 30
    assert tally.places == tuple(f"{path}:{line}" for line in range(1, 6))


def test_unused_columns_of_all_files_are_named(tmp_path: Path) -> None:
    first = write(tmp_path, [row("the", " cat", " dog", id=1, source="x")], "a.jsonl")
    second = write(tmp_path, [row("a", " cat", " dog", source="x", score=2)], "b.jsonl")
    assert take(first, second).summary.extra_columns == ("id", "source", "score")


# Errors


def test_bad_rows_of_all_files_are_told_together(tmp_path: Path) -> None:
    first = write(tmp_path, [row("the", " cat", " dog"), "{", row("the", 1, "dog")], "a.jsonl")
    second = write(tmp_path, [row("the", " cat", " dog"), {"prompt": "the", "chosen": "cat"}], "b.jsonl")
    with pytest.raises(DataError) as error:
        take(first, second, str(tmp_path / "c.jsonl"))
    lines = str(error.value).splitlines()
    assert lines[0] == "4 problems:"
    starts = (
        f"{first}:2:2: not valid JSON",
        f"{first}:3: chosen:",
        f"{second}:2: no rejected here",
        f"{tmp_path}/c.jsonl: no",
    )
    assert [line.startswith(start) for line, start in zip(lines[1:], starts, strict=True)] == [True] * 4


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    tokenizer = byte_level()
    template, tokenizer.chat_template = tokenizer.chat_template, "{{ raise_exception('never') }}"
    try:
        path = write(tmp_path, [row("the", " cat", " dog"), chat("Hi", "Yes", "No")])
        with pytest.raises(DataError, match=rf"^{path}:2: the chat template refuses these messages \(user\): never"):
            take(path, tokenizer=tokenizer)
    finally:
        tokenizer.chat_template = template


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        take(write(tmp_path, [chat("the", "cat", "dog")]))


def test_no_rows_left_is_an_error_with_the_counts(tmp_path: Path) -> None:
    path = write(tmp_path, [row("the", " cat", " cat"), row("the cat", " sat", " ran")])
    with pytest.raises(DataError) as error:
        take(path, seq_length=2)
    assert str(error.value).startswith(f"{path}: no row is left to use.")
    assert f"dropped, equal answers: 1 ({path}:1)" in str(error.value)
    assert f"dropped, longer than seq_length: 1 ({path}:2)" in str(error.value)


def test_one_empty_file_among_others_is_an_error_where_it_has_a_share(tmp_path: Path) -> None:
    empty = write(tmp_path, [row("the", " cat", " cat")], "a.jsonl")
    good = write(tmp_path, [row("the", " cat", " dog")], "b.jsonl")
    assert take(empty, good).sizes == (0, 1)
    with pytest.raises(DataError, match=rf"^{empty}: no row is left to use"):
        ingest([(0.5, empty), (0.5, good)], Pairs(), Tokenization.of(words()), seq_length=9)


def test_an_unknown_format_is_the_configurations_fault(tmp_path: Path) -> None:
    path = write(tmp_path, [row("the", " cat", " dog")])
    with pytest.raises(ConfigError, match=r"unknown row format 'alpca'. Did you mean 'alpaca'"):
        take(path, format="alpca")
    with pytest.raises(DataError, match="no instruction here"):
        take(path, format="alpaca")


# Lists and splits


def test_weights_stay_with_their_files(tmp_path: Path) -> None:
    first = write(tmp_path, [row("the", " cat", " dog")] * 2, "a.jsonl")
    second = write(tmp_path, [row("the", " cat", " dog")] * 3, "b.jsonl")
    data = ingest([(0.3, first), (0.7, second)], Pairs(), Tokenization.of(words()), seq_length=9)
    assert data.sizes == (2, 3)
    assert data.weights == (0.3, 0.7)
    again = ingest([(0.3, first), (0.7, first)], Pairs(), Tokenization.of(words()), seq_length=9)
    assert [source.rows for source in again.sources] == [range(2), range(2, 4)]


@pytest.mark.parametrize(
    ("splits", "rows", "sizes"),
    [
        ("980,10,10", 1000, (980, 10, 10)),
        ("980, 10, 10", 1000, (980, 10, 10)),
        ("0.98,0.01,0.01", 1000, (980, 10, 10)),
        ("980,10,10", 100, (98, 1, 1)),
        ("1,1,1", 10, (4, 3, 3)),  # each share is rounded to 3; the missing one moves all bounds by one
        ("1,1,0", 3, (1, 2, 0)),  # each is rounded to 2; the one too many moves all bounds back
        ("0,1,1", 3, (0, 1, 2)),
        ("1,0,0", 7, (7, 0, 0)),
        ("98,1,1", 1, (1, 0, 0)),
        ("1,1,1", 0, (0, 0, 0)),
    ],
)
def test_splits_are_nemos(splits: str, rows: int, sizes: tuple[int, int, int]) -> None:
    assert tuple(map(len, split_rows(splits, rows))) == sizes


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any), st.integers(0, 5000))
def test_splits_hold_every_row_once_in_order(shares: list[int], rows: int) -> None:
    train, validation, test = split_rows(",".join(map(str, shares)), rows)
    assert [*train, *validation, *test] == list(range(rows))
    for part, share in zip((train, validation, test), shares, strict=True):
        assert abs(len(part) - share / sum(shares) * rows) <= 2.5


def test_a_part_is_a_split_of_its_own(tmp_path: Path) -> None:
    first = write(tmp_path, [row("the", f" cat{' sat' * n}", " dog") for n in range(4)], "a.jsonl")
    second = write(tmp_path, [row("a", " cat", " dog")] * 2, "b.jsonl")
    whole = take(first, second)
    head, middle, tail = (whole.part(rows) for rows in (range(3), range(3, 5), range(5, 6)))
    assert head.examples + middle.examples + tail.examples == whole.examples
    assert head.where + middle.where + tail.where == whole.where
    assert [[(s.path, s.rows) for s in part.sources] for part in (head, middle, tail)] == [
        [(first, range(3))],
        [(first, range(1)), (second, range(1, 2))],
        [(second, range(1))],
    ]
    assert [part.summary.tokens.longest for part in (head, middle, tail)] == [4, 5, 2]
    assert sum(part.summary.tokens.shared for part in (head, middle, tail)) == whole.summary.tokens.shared
    assert [part.summary.rows_kept for part in (head, middle, tail)] == [3, 2, 1]


# Real data


@needs_shared
def test_real_rows_are_kept_but_for_equal_answers(smollm2: PreTrainedTokenizerBase) -> None:
    train, valid = (str(SHARED / f"politeness_{split}.jsonl") for split in ("train", "valid"))
    data = take(train, valid, tokenizer=smollm2, seq_length=1024)
    assert [file.rows_read for file in data.summary.files] == [1000, 100]
    assert {name: tally.count for name, tally in data.summary.dropped.items()} == {about.EQUAL_ANSWERS: 6}
    assert len(data.examples) == 1094


@needs_shared
def test_real_conversations_are_dropped_only_for_length(smollm2: PreTrainedTokenizerBase) -> None:
    data = take(str(SHARED / "conversations_pairs.json"), tokenizer=smollm2, seq_length=1024)
    assert data.summary.rows_read == 300
    assert data.summary.dropped.keys() == {about.OVERLONG}
    assert data.summary.tokens.longest <= 1024
    end = smollm2.convert_tokens_to_ids("<|im_end|>")
    assert all(end in completion.scored for example in data.examples for completion in example.completions)
