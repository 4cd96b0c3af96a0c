"""Scores are found by content, and a store that was damaged is noticed, put aside and never believed."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from dpolish.errors import RunError
from dpolish.reference.cache import Identity, ReferenceCache, completion_key
from dpolish.tensors import Completion, Example
from tests.examples import random_examples

IDENTITY = Identity("weights", "32", "segments")


def scores(examples: list[Example], offset: float = 0.0) -> np.ndarray:
    return -np.arange(2 * len(examples), dtype=np.float32).reshape(-1, 2) - 1 - offset


def filled(root: Path, examples: list[Example]) -> ReferenceCache:
    cache = ReferenceCache(root, IDENTITY)
    cache.add(examples, scores(examples))
    return cache


def segments(root: Path, suffix: str = ".safetensors") -> list[Path]:
    return sorted((root / IDENTITY.digest).glob(f"*{suffix}"))


# --- by content -------------------------------------------------------------------------------------------------------


def test_scores_are_found_again_in_any_order_and_pairing(tmp_path: Path) -> None:
    examples = random_examples(8)
    filled(tmp_path, examples)
    cache = ReferenceCache(tmp_path, IDENTITY)
    assert len(cache) == 16
    assert cache.notes == []
    np.testing.assert_array_equal(cache.lookup(examples[::-1]), scores(examples)[::-1])
    swapped = [replace(one, completions=one.completions[::-1]) for one in examples]
    np.testing.assert_array_equal(cache.lookup(swapped), scores(examples)[:, ::-1])
    alone = [replace(one, completions=one.completions[1:], rewards=(5.0,)) for one in examples]
    np.testing.assert_array_equal(cache.lookup(alone), scores(examples)[:, 1:])


def test_what_is_not_stored_is_nan(tmp_path: Path) -> None:
    known, other = random_examples(6), random_examples(6, seed=1)
    cache = filled(tmp_path, known)
    found = cache.lookup([known[2], replace(known[0], completions=(known[0].completions[0], other[0].completions[1]))])
    assert np.isnan(found).tolist() == [[False, False], [False, True]]


def test_segments_add_up(tmp_path: Path) -> None:
    first, second = random_examples(6), random_examples(7, seed=1)
    filled(tmp_path, first)
    ReferenceCache(tmp_path, IDENTITY).add(second, scores(second, offset=50))
    cache = ReferenceCache(tmp_path, IDENTITY)
    np.testing.assert_array_equal(cache.lookup(first), scores(first))
    np.testing.assert_array_equal(cache.lookup(second), scores(second, offset=50))


@pytest.mark.parametrize("field", ["weights", "dtype", "attention_backend"])
def test_another_reference_has_scores_of_its_own(tmp_path: Path, field: str) -> None:
    examples = random_examples(3)
    filled(tmp_path, examples)
    assert np.isnan(ReferenceCache(tmp_path, replace(IDENTITY, **{field: "other"})).lookup(examples)).all()


def test_without_a_folder_scores_live_as_long_as_the_run(tmp_path: Path) -> None:
    examples = random_examples(3)
    cache = ReferenceCache(None, IDENTITY)
    cache.add(examples, scores(examples))
    np.testing.assert_array_equal(cache.lookup(examples), scores(examples))
    assert list(tmp_path.iterdir()) == []


tokens = st.lists(st.integers(0, 2), min_size=2, max_size=4)


def split(ids: list[int], prompt: int, first: int, unscored: bool) -> tuple[Example, Completion]:
    """An example that holds `ids`, of which the first `prompt` are shared and scoring starts at `first`."""
    left_out = (len(ids) - prompt - 1,) if unscored and first < len(ids) - 1 else ()
    completion = Completion(np.array(ids[prompt:], dtype=np.int32), first - prompt, left_out)
    return Example(np.array(ids[:prompt], dtype=np.int32), (completion,), (0.0,)), completion


@given(tokens, tokens, st.data())
def test_a_key_is_the_tokens_and_what_is_scored_of_them_and_nothing_else(
    one: list[int], other: list[int], data: st.DataObject
) -> None:
    contents, keys = [], []
    for ids in (one, other):
        first = data.draw(st.integers(1, len(ids) - 1))
        prompt = data.draw(st.integers(0, first))
        example, completion = split(ids, prompt, first, data.draw(st.booleans()))
        contents.append((ids, [prompt + index for index in completion.scored_at.tolist()]))
        keys.append(completion_key(example, completion))
    assert (keys[0] == keys[1]) == (contents[0] == contents[1])


# --- damage -----------------------------------------------------------------------------------------------------------


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of the header": lambda path: _flip(path, 20),
    "a bit of the scores": lambda path: _flip(path, -3),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "other content": lambda path: path.write_bytes(b"{}" * 100),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_segment_is_put_aside_and_the_others_hold(tmp_path: Path, damage: str) -> None:
    first, second = random_examples(6), random_examples(6, seed=1)
    filled(tmp_path, first)
    (segment,) = segments(tmp_path)
    ReferenceCache(tmp_path, IDENTITY).add(second, scores(second))
    DAMAGE[damage](segment)
    cache = ReferenceCache(tmp_path, IDENTITY)
    assert np.isnan(cache.lookup(first)).all()
    np.testing.assert_array_equal(cache.lookup(second), scores(second))
    (note,) = cache.notes
    assert note.startswith(f"reference cache: {segment} is damaged")
    assert "scored again" in note
    assert segments(tmp_path, ".bad") == [segment.with_suffix(".bad")]
    cache.add(first, scores(first))
    again = ReferenceCache(tmp_path, IDENTITY)
    assert again.notes == []
    np.testing.assert_array_equal(again.lookup(first), scores(first))


def test_a_segment_of_another_reference_is_put_aside(tmp_path: Path) -> None:
    """Whole, under its right name, but moved here by hand: its own mark tells."""
    examples, other = random_examples(6), replace(IDENTITY, weights="others")
    ReferenceCache(tmp_path, other).add(examples, scores(examples))
    (segment,) = (tmp_path / other.digest).iterdir()
    (tmp_path / IDENTITY.digest).mkdir()
    moved = segment.rename(tmp_path / IDENTITY.digest / segment.name)
    cache = ReferenceCache(tmp_path, IDENTITY)
    assert np.isnan(cache.lookup(examples)).all()
    assert [note.startswith(f"reference cache: {moved} belongs to another reference") for note in cache.notes] == [True]
    assert not moved.exists()


def test_a_whole_file_without_our_tables_is_put_aside(tmp_path: Path) -> None:
    content = b"not a table at all"
    folder = tmp_path / IDENTITY.digest
    folder.mkdir()
    (folder / f"{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    (note,) = ReferenceCache(tmp_path, IDENTITY).notes
    assert "cannot be read" in note


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_a_damaged_segment_that_cannot_be_moved_is_left_out_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """Another run was faster, or the store is another user's."""
    examples = random_examples(3)
    filled(tmp_path, examples)
    _flip(segments(tmp_path)[0], -3)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    cache = ReferenceCache(tmp_path, IDENTITY)
    assert np.isnan(cache.lookup(examples)).all()
    assert len(cache.notes) == 1


def test_a_store_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"(?s)file.*model\.dpo\.reference_cache to another folder, or to off"):
        filled(tmp_path / "file", random_examples(2))


def test_unfinished_files_are_no_segments(tmp_path: Path) -> None:
    examples = random_examples(3)
    filled(tmp_path, examples)
    (tmp_path / IDENTITY.digest / ".half.safetensors.tmp").write_bytes(b"x")
    cache = ReferenceCache(tmp_path, IDENTITY)
    assert cache.notes == []
    assert len(cache) == 6


def test_asking_whether_it_can_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    ReferenceCache(None, IDENTITY).require_writable()
    cache = ReferenceCache(tmp_path / "store", IDENTITY)
    assert not (tmp_path / "store").exists(), "opening it reads only, as a plan does"
    cache.require_writable()
    assert list((tmp_path / "store" / IDENTITY.digest).iterdir()) == []
