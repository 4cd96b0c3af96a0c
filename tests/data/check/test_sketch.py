import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpolish.data.check.sketch import LIKENESS, SKETCH_VALUES, Frames, bare_words, similar, sketches

VOCABULARY = [f"word{number}" for number in range(500)]


def runs(words: list[bytes]) -> set[tuple[bytes, ...]]:
    """The set that a sketch stands for."""
    padded = [*words, b"", b""]
    return {tuple(padded[index : index + 3]) for index in range(len(words))}


def likeness(first: list[bytes], second: list[bytes]) -> float:
    one, two = runs(first), runs(second)
    return len(one & two) / len(one | two)


def changed_texts(count: int) -> list[tuple[list[bytes], list[bytes]]]:
    """Texts beside the same with some words changed."""
    rng = random.Random(0)
    pairs = []
    for length in (3, 20, 80, 250):
        for _ in range(count):
            before = rng.choices(VOCABULARY, k=length)
            after = list(before)
            for _ in range(rng.randint(0, length // 10 + 1)):
                after[rng.randrange(length)] = rng.choice(VOCABULARY)
            pairs.append((bare_words(" ".join(before)), bare_words(" ".join(after))))
    return pairs


def test_equal_values_estimate_likeness() -> None:
    pairs = changed_texts(100)
    made = sketches([words for pair in pairs for words in pair])
    estimated = (made[0::2] == made[1::2]).mean(axis=1)
    error = estimated - np.array([likeness(*pair) for pair in pairs])
    assert abs(error.mean()) < 0.01
    assert error.std() < 0.06
    assert abs(error).max() < 0.25


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=12), max_size=8))
def test_a_sketch_is_of_its_text_alone(texts: list[list[bytes]]) -> None:
    together = sketches(texts)
    assert together.shape == (len(texts), SKETCH_VALUES)
    for index, words in enumerate(texts):
        np.testing.assert_array_equal(together[index], sketches([words])[0])
        assert together[index].any() == bool(words)


@given(st.text(), st.text())
def test_bare_words_ignore_case_punctuation_and_blanks(first: str, second: str) -> None:
    assert bare_words(f"{first} {second}") == bare_words(f"  {first},\n{second}! ")
    assert bare_words(first.upper().casefold()) == bare_words(first.upper())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3 o'clock!", ["it", "s", "3", "o", "clock"]),
        ("Größe", ["grösse"]),
        ("東京は", ["東", "京", "は"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("?! …", []),
        ("snake_case", ["snake", "case"]),
    ],
)
def test_bare_words(text: str, words: list[str]) -> None:
    assert bare_words(text) == [word.encode() for word in words]


def test_similar_finds_what_is_alike_and_nothing_else() -> None:
    pairs = changed_texts(100)
    texts = [words for pair in pairs for words in pair]
    rows, earlier = similar(sketches(texts))
    found = dict(zip(rows.tolist(), earlier.tolist(), strict=True))
    assert list(found) == sorted(found)
    for row, other in found.items():
        assert other < row
        assert likeness(texts[row], texts[other]) > LIKENESS - 0.25
    for index, pair in enumerate(pairs):
        if likeness(*pair) > 0.95:
            assert found[2 * index + 1] == 2 * index
        elif likeness(*pair) < 0.5:
            assert 2 * index + 1 not in found


def test_a_crowd_of_equals_is_compared_with_its_first() -> None:
    words = bare_words("why is the sky blue and not green")
    rows, earlier = similar(sketches([words] * 2000))
    assert rows.tolist() == list(range(1, 2000))
    assert set(earlier.tolist()) == {0}


def test_texts_without_words_are_like_nothing() -> None:
    rows, _ = similar(sketches([[], [], [b"a"], []]))
    assert rows.tolist() == []


def test_frames_are_learned_from_many_prompts_and_taken_off_where_they_are() -> None:
    frames = Frames()
    texts = [bare_words(f"Below is a task {number} {number * 7} answer now") for number in range(20)]
    frames.learn("few.jsonl", texts[:3] * 20)
    assert frames.without(texts[0]) == texts[0]
    frames.learn("many.jsonl", texts)
    assert frames.without(texts[5]) == [b"5", b"35"]
    assert frames.without(bare_words("Below is a task 1 2 answer")) == bare_words("Below is a task 1 2 answer")
    assert frames.without(bare_words("Below is a task answer now")) == []
    assert frames.without(bare_words("is a")) == [b"is", b"a"]
