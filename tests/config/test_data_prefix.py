"""Every way to name data files, and the words for every way to name them wrongly."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dpolish.config.data_prefix import DataFiles, DataSource, DataSources, is_split, parse_data_prefix, parse_sources
from dpolish.errors import ConfigError

A, B = DataSource("a"), DataSource("b")


@pytest.mark.parametrize(
    ("value", "files"),
    [
        (None, DataFiles()),
        ({}, DataFiles()),
        ("a", DataFiles(train=(A,), by_split=False)),
        (["a", "b"], DataFiles(train=(A, B), by_split=False)),
        ([1, "a", 0.5, "b"], DataFiles(train=(DataSource("a", 1.0), DataSource("b", 0.5)), by_split=False)),
        ({"train": "a", "test": ["b"]}, DataFiles(train=(A,), test=(B,))),
        ({"train": ["a"], "validation": [], "test": None}, DataFiles(train=(A,))),
        (
            {"validation_x": ["a"], "validation": ["b"], "train": [0.3, "a", 0.7, "b"]},
            DataFiles(
                train=(DataSource("a", 0.3), DataSource("b", 0.7)),
                validation=(("validation_x", (A,)), ("validation", (B,))),
            ),
        ),
    ],
)
def test_the_ways_to_name_files(value: object, files: DataFiles) -> None:
    assert parse_data_prefix(value) == files
    assert parse_data_prefix(files.plain()) == files


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "expected a path, a list or"),
        ({"valid": ["a"]}, "unknown split 'valid'. Did you mean 'validation'?"),
        ({"train": {"a": 1}}, "train: expected a path or a list of paths"),
        ({"train": [["a"]]}, "train: expected a path, got"),
        ({"train": ["a", 0.5]}, "train: expected a path, got 0.5; with weights write"),
        ({"train": [0.5, "a", 0.5]}, "must alternate, but the list has 3 items"),
        ({"train": [0.5, 0.5]}, "train: expected a path, got 0.5"),
        ({"train": [0, "a"]}, "expected a weight above 0, got 0"),
        ({"train": [float("inf"), "a"]}, "expected a weight above 0, got inf"),
        ({"validation": [" "]}, "validation: a path is empty"),
    ],
)
def test_the_ways_to_name_them_wrongly(value: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_data_prefix(value)
    assert words in str(caught.value)


def test_the_names_of_splits() -> None:
    assert [name for name in ("train", "test", "validation", "validation_x", "valid", "trains") if is_split(name)] == [
        "train",
        "test",
        "validation",
        "validation_x",
    ]


paths = st.text(min_size=1).filter(str.strip)
sources = st.one_of(
    st.lists(paths.map(DataSource), min_size=1),
    st.lists(st.builds(DataSource, paths, st.floats(1e-9, 1e9)), min_size=1),
).map(tuple)


@given(train=sources, validation=sources, by_split=st.booleans())
def test_plain_and_back(train: tuple[DataSource, ...], validation: tuple[DataSource, ...], by_split: bool) -> None:
    named = (("validation", validation),) if by_split else ()
    files = DataFiles(train=train, validation=named, by_split=by_split)
    assert parse_data_prefix(files.plain()) == files


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "expected a path or a list of paths, got 3"),
        ({"train": ["a"]}, "expected a path or a list of paths, got {'train'"),
        ([0.3, "a", 0.7], "weights and paths must alternate, but the list has 3 items"),
        (["a", None], "expected a path, got None"),
        ("", "a path is empty; is a shell variable not set?"),
        ([-1, "a"], "expected a weight above 0, got -1"),
    ],
)
def test_the_ways_to_name_one_split_wrongly(value: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sources(value)
    assert str(caught.value).startswith(words)


@given(sources)
def test_one_split_plain_and_back(found: tuple[DataSource, ...]) -> None:
    assert parse_sources(DataSources(found).plain()) == DataSources(found)
    assert parse_sources(None) == parse_sources(DataSources().plain()) == DataSources()
    assert parse_sources("a") == parse_sources(["a"]) == DataSources((A,))
