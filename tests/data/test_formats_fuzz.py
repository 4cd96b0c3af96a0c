"""Rows of every shape, bent in any way, are records, skipped, or errors with their line; nothing else comes out."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpolish.data.formats import Skipped
from dpolish.data.read import Fault
from dpolish.errors import DataError
from dpolish.records import Conversation, Message, PreferencePair
from tests.data.shapes import OPEN, SHAPES, rows_of, write

WORDS = (
    *("role", "content", "from", "value", "type", "text", "label", "weight", "rank", "tool_calls", "system", "tools"),
    *(
        "user",
        "assistant",
        "tool",
        "human",
        "gpt",
        "model_a",
        "tie",
        "VALUE_TO_TEXT",
        "\n\nHuman: a\n\nAssistant: b",
        "",
    ),
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-4, 4)
    | st.sampled_from([10**19, 1.5, -1e300])
    | st.sampled_from(WORDS)
    | st.text(max_size=4)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The way to everything within a row."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *places(inner, (*path, key))]]


@st.composite
def bent(draw: st.DrawFn, rows: list[dict[str, object]]) -> dict[str, object]:
    """A row in which some things are dropped, replaced, nested, or added."""
    row: dict[str, object] = copy.deepcopy(draw(st.sampled_from(rows)))
    for _ in range(draw(st.integers(1, 3))):
        ways = places(row)
        if not ways:
            break
        *path, last = draw(st.sampled_from(ways))
        inner: object = row
        for key in path:
            inner = inner[key]
        assert isinstance(inner, dict | list)
        match draw(st.sampled_from(["drop", "replace", "replace", "nest", "add"])):
            case "drop":
                del inner[last]
            case "replace":
                inner[last] = draw(values)
            case "nest":
                inner[last] = draw(st.sampled_from([[inner[last]], {"role": inner[last]}]))
            case "add" if isinstance(inner, dict):
                inner[draw(st.sampled_from(WORDS))] = draw(values)
            case "add":
                inner.append(draw(values))
    return row


@pytest.mark.parametrize(("kind", "name"), SHAPES)
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_bent_rows_are_records_or_errors(
    tmp_path_factory: pytest.TempPathFactory, kind: str, name: str, data: st.DataObject
) -> None:
    good = rows_of(kind, name)
    row = data.draw(bent(good))
    path = write(tmp_path_factory.getbasetemp(), good[0], row, name="bent.jsonl")
    format = data.draw(st.sampled_from([None, name]))
    for item in OPEN[kind](path, format).records():
        if isinstance(item, PreferencePair):
            sides = (item.prompt, item.chosen, item.rejected)
            assert len({isinstance(side, str) for side in sides}) == 1
            assert all(isinstance(side, str) or all(isinstance(turn, Message) for turn in side) for side in sides)
            assert all(
                answer[0].role == answer[-1].role == "assistant" for answer in sides[1:] if isinstance(answer, tuple)
            )
            assert len(item.id) == 64
        elif isinstance(item, Conversation):
            assert len(item.pieces) == len(item.trained)
            assert any(item.trained)
            assert len(item.id) == 64
        else:
            assert isinstance(item, Skipped | DataError | Fault)
            where = item.where if isinstance(item, Skipped) else str(item)
            assert where.startswith((f"{path}:1", f"{path}:2"))


def test_there_are_two_thousand_examples() -> None:
    assert 80 * len(SHAPES) >= 2000
