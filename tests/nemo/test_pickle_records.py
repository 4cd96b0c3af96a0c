"""Pickles of data come out as Python has them; of all else only the name is kept. Refusals are in test_hostile."""

import collections
import io
import pickle
import pickletools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpolish.errors import ModelError
from dpolish.nemo import pickle_records
from dpolish.nemo.pickle_records import Global, PersistentId, Record, read_pickle

LEAVES = (
    st.none() | st.booleans() | st.integers(-(1 << 80), 1 << 80) | st.floats(allow_nan=False) | st.text() | st.binary()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


def nothing(name: str) -> bool:
    return False


def everything(name: str) -> bool:
    return True


@given(VALUES, st.integers(3, 5))  # in older protocols, bytes are a call
def test_data_is_as_pickle_reads_it(value: object, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol), nothing, "x") == value


@given(VALUES)
def test_older_protocols(value: object) -> None:
    text = io.BytesIO()
    pickle.Pickler(text, 2).dump(value)
    if b"_codecs" not in text.getvalue() and b"__builtin__" not in text.getvalue():
        assert read_pickle(text.getvalue(), nothing, "x") == value


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_call_is_recorded(protocol: int) -> None:
    value = read_pickle(pickle.dumps(collections.OrderedDict(a=torch.Size((1, 2))), protocol), everything, "x")
    assert isinstance(value, Record)
    assert value.name == "collections.OrderedDict"
    assert value.items is not None
    size = value.items["a"]
    assert isinstance(size, Record)
    assert (size.name, size.arguments) == ("torch.Size", ((1, 2),))


class Node:
    def __init__(self) -> None:
        self.child: Any = None


def test_state_and_cycles() -> None:
    node = Node()
    node.child = node
    value = read_pickle(pickle.dumps(node, 4), everything, "x")
    assert isinstance(value, Record)
    assert value.name == f"{__name__}.Node"
    assert value.state == {"child": value}


def test_names_are_asked_for() -> None:
    asked: list[str] = []

    def allowed(name: str) -> bool:
        asked.append(name)
        return name == "torch.float32"

    value = read_pickle(pickle.dumps([torch.float32, torch.float32], 2), allowed, "x")
    assert isinstance(value, list)
    assert isinstance(value[0], Global)
    assert value[0] is value[1]
    with pytest.raises(ModelError, match=r"x: its pickle asks for 'torch\.float16'"):
        read_pickle(pickle.dumps(torch.float16, 2), allowed, "x")
    assert asked[-1] == "torch.float16"


def test_persistent_ids() -> None:
    value = read_pickle(b"\x80\x02U\x01kQ.", nothing, "x")
    assert isinstance(value, PersistentId)
    assert value.value == "k"


def test_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps([[index] for index in range(100)], 4)
    assert read_pickle(data, nothing, "x") == [[index] for index in range(100)]
    monkeypatch.setattr(pickle_records, "MAX_COST", 5_000)
    with pytest.raises(ModelError, match="lists more than"):
        read_pickle(data, nothing, "x")


def test_the_memo() -> None:
    assert read_pickle(b"\x80\x02K\x01q\x05h\x05\x86.", nothing, "x") == (1, 1)
    shared = ["a"]
    value = read_pickle(pickletools.optimize(pickle.dumps([shared, shared], 2)), nothing, "x")  # has gaps
    assert isinstance(value, list)
    assert value == [["a"], ["a"]]
    assert value[0] is value[1]
    for data in (b"\x80\x02Nq\x05h\x03\x86.", b"\x80\x02Nq\x05h\x06\x86.", b"Ng-1\n\x86.", b"Np-1\n."):
        with pytest.raises(ModelError, match="damaged"):
            read_pickle(data, nothing, "x")
    with pytest.raises(ModelError, match="lists more than"):  # and not a memo of 30 GiB
        read_pickle(b"\x80\x02Nr\xff\xff\xff\xff.", nothing, "x")
