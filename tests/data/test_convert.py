"""Any shape becomes native JSON lines that say the same: every record keeps its id."""

import copy
import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpolish.data.convert import Converted, convert, native_row
from dpolish.data.formats import (
    FORMATS,
    PAIRINGS,
    SCORED_EQUALLY,
    SFT_FORMATS,
    ConversationFile,
    Fields,
    PairFile,
    Skipped,
)
from dpolish.data.formats.answers import TIE
from dpolish.data.read import Row
from dpolish.data.summary import Tally
from dpolish.errors import ConfigError, DataError, RunError
from dpolish.records import Conversation, PreferencePair
from tests.data.shapes import OPEN, SHAPES, golden_path, rows_of, write

MIXED = ("sft", "prompt_completion")
"""Its golden file has strings and messages."""

TRL = {"prompt": "p", "chosen": "c", "rejected": "r"}


def records(file: PairFile | ConversationFile) -> list[PreferencePair | Conversation]:
    """The records of a file in which nothing is wrong."""
    items = [item for item in file.records() if not isinstance(item, Skipped)]
    found = [item for item in items if isinstance(item, PreferencePair | Conversation)]
    assert found == items
    return found


@pytest.mark.parametrize("pairs", PAIRINGS)
@pytest.mark.parametrize(("kind", "name"), [shape for shape in SHAPES if shape != MIXED])
def test_a_converted_file_has_the_same_records(tmp_path: Path, kind: str, name: str, pairs: str) -> None:
    target = str(tmp_path / "native.jsonl")
    source = golden_path(kind, name)
    done = convert(source, target, pairs=pairs)
    before = records(PairFile(source, pairs=pairs) if kind == "preference" else ConversationFile(source))
    file = OPEN[kind](target)
    after = records(file)
    assert [record.id for record in after] == [record.id for record in before]
    assert (done.kind, done.format, done.num_rows) == (kind, name, len(rows_of(kind, name)))
    assert done.num_written == file.num_rows == len(after)
    assert file.format is not None
    assert file.format.name in ("native", "messages", "prompt_completion", "text")
    assert not file.extra_columns
    again = str(tmp_path / "again.jsonl")
    convert(target, again)
    assert Path(again).read_bytes() == Path(target).read_bytes()


def test_strings_and_messages_make_no_file_of_one_format(tmp_path: Path) -> None:
    source = golden_path(*MIXED)
    with pytest.raises(DataError, match=rf"^{source}:2: would be written as messages, where .* as prompt, completion"):
        convert(source, str(tmp_path / "native.jsonl"))
    assert not [*tmp_path.iterdir()]
    strings, *messages = rows_of(*MIXED)
    for name, rows in (("strings", [strings]), ("messages", messages)):
        path, target = write(tmp_path, *rows), str(tmp_path / f"{name}.jsonl")
        convert(path, target)
        before, after = (records(ConversationFile(file)) for file in (path, target))
        assert [record.id for record in after] == [record.id for record in before]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@st.composite
def reworded(draw: st.DrawFn, value: object) -> object:
    """A row with other texts, where a text can be any."""
    if isinstance(value, dict):
        keep = ("role", "from", "winner", "tools", "mask", "type", "kto_tag")
        return {key: inner if key in keep else draw(reworded(inner)) for key, inner in value.items()}
    if isinstance(value, list):
        return [draw(reworded(inner)) for inner in value]
    if isinstance(value, str) and "Human:" not in value and "{" not in value:
        return draw(text | st.just(value))
    if isinstance(value, float):
        return draw(st.floats(allow_nan=False, allow_infinity=False) | st.just(value))
    return value


@pytest.mark.parametrize(("kind", "name"), SHAPES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_record_is_read_back_from_its_native_row(
    tmp_path_factory: pytest.TempPathFactory, kind: str, name: str, data: st.DataObject
) -> None:
    row = data.draw(reworded(copy.deepcopy(data.draw(st.sampled_from(rows_of(kind, name))))))
    folder = tmp_path_factory.getbasetemp()
    path = write(folder, row, name="reworded.jsonl")
    file = PairFile(path, name) if kind == "preference" else ConversationFile(path, name)
    found = [item for item in file.records() if isinstance(item, PreferencePair | Conversation)]
    for record in found:
        native = write(folder, native_row(record), name="native.jsonl")
        (again,) = records(OPEN[kind](native))
        assert again.id == record.id


def test_what_has_no_other_form_is_read_back_too(tmp_path: Path) -> None:
    labels = [{"from": "User", "value": "Hi"}, {"from": "Assistant", "value": "c", "label": "quality:9"}]
    nemo = {"mask": "Assistant", "type": "VALUE_TO_TEXT", "system": "s", "conversations": [*labels, labels[0]]}
    path = write(tmp_path, nemo)
    (record,) = records(ConversationFile(path))
    assert native_row(record)["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "c", "label": "quality:9", "type": "VALUE_TO_TEXT", "weight": 0},
        {"role": "user", "content": "Hi", "weight": 1},
    ]
    convert(path, str(tmp_path / "native.jsonl"))
    assert [one.id for one in records(ConversationFile(str(tmp_path / "native.jsonl")))] == [record.id]


def test_the_summary_says_what_became_of_the_rows(tmp_path: Path) -> None:
    scored = {**TRL, "chosen_score": 1, "rejected_score": 1}
    path = write(tmp_path, TRL, scored, {**TRL, "chosen_reward": 2, "rejected_reward": 2, "id": 7}, scored)
    target = str(tmp_path / "native.jsonl")
    done = convert(path, target)
    ties = Tally(2, (f"{path}:2", f"{path}:4"))
    remarks = {SCORED_EQUALLY: Tally(1, (f"{path}:3",))}
    assert done == Converted(path, target, "preference", "trl", 4, 2, {TIE: ties}, remarks, ("id",))
    assert done.lines() == [
        f"{path}: read as trl, 4 rows",
        f"{target}: 2 pairs written",
        f"  skipped, a tie: neither answer is better: 2 ({path}:2, :4)",
        f"  both answers have the same reward: 1 ({path}:3)",
        "  columns not used: id",
    ]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_the_suffix_compresses_and_equal_rows_make_equal_bytes(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, *[TRL] * 200)
    plain, first, second = (tmp_path / name for name in ("plain.jsonl", f"first{suffix}", f"second{suffix}"))
    for target in (plain, first, second):
        convert(path, str(target))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < plain.stat().st_size / 10
    inflate = gzip.decompress if suffix.endswith("gz") else zstandard.ZstdDecompressor().decompressobj().decompress
    assert inflate(first.read_bytes()) == plain.read_bytes()
    assert len(records(PairFile(str(first)))) == 200


def test_the_kind_follows_from_the_first_row_or_the_shape(tmp_path: Path) -> None:
    demonstration = write(tmp_path, {"x": 1}, {"instruction": "i", "output": "o"})
    with pytest.raises(DataError, match="no known row format"):
        convert(demonstration, str(tmp_path / "a.jsonl"))
    for format, wanted in ((None, "sft"), ("alpaca", "sft"), ("input_output", None)):
        source = write(tmp_path, {"instruction": "i", "output": "o"})
        if wanted is None:
            with pytest.raises(DataError, match=r":1: no input here"):
                convert(source, str(tmp_path / "b.jsonl"), format=format)
        else:
            assert convert(source, str(tmp_path / f"{format}.jsonl"), format=format).kind == wanted
    source = write(tmp_path, {"instruction": "i", "chosen": "c", "rejected": "r"})
    assert convert(source, str(tmp_path / "c.jsonl"), format="alpaca").kind == "preference"
    both = write(tmp_path, {"prompt": "Hi", "messages": rows_of("preference", "implicit")[0]["chosen"], **TRL})
    assert convert(both, str(tmp_path / "d.jsonl")).kind == "preference"
    assert convert(both, str(tmp_path / "e.jsonl"), kind="sft").format == "messages"
    with pytest.raises(ConfigError, match=r"unknown row format 'mesages'\. Did you mean 'messages'\? Known: alpaca"):
        convert(both, str(tmp_path / "f.jsonl"), format="mesages")


def test_a_bad_row_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(tmp_path, TRL, {"prompt": "p", "chosen": "c"}, TRL, {"prompt": 3, "chosen": "c", "rejected": "r"})
    with pytest.raises(DataError) as error:
        convert(path, str(tmp_path / "native.jsonl"))
    assert str(error.value).startswith(f"2 problems:\n{path}:2: no rejected here")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rows.jsonl"]


def test_what_is_nested_too_deep_to_write_is_an_error_of_its_row(tmp_path: Path) -> None:
    deep: object = 1
    for _ in range(400):
        deep = [deep]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "c", "tool_calls": [{"a": deep}]}]
    path = write(tmp_path, {"messages": turns})
    with pytest.raises(DataError, match=r":1: cannot be written as JSON: Recursion limit"):
        convert(path, str(tmp_path / "native.jsonl"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_file_without_a_record_is_not_written(tmp_path: Path) -> None:
    path = write(tmp_path, {**TRL, "margin": 0})
    with pytest.raises(DataError, match=r"no row gives a record, so there is nothing to write \(a tie: .*:1"):
        convert(path, str(tmp_path / "native.jsonl"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rows.jsonl"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path, TRL)
    with pytest.raises(ConfigError, match=r"rows\.jsonl: exists, and no file is overwritten"):
        convert(path, path)
    assert len(records(PairFile(path))) == 1
    with pytest.raises(ConfigError, match=r"native.json: rows are written as JSON lines: name the file \*.jsonl"):
        convert(path, str(tmp_path / "native.json"))
    with pytest.raises(ConfigError, match=r"there is no folder .*/missing: make it first"):
        convert(path, str(tmp_path / "missing" / "native.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        convert(str(tmp_path / "missing.jsonl"), str(tmp_path / "native.jsonl"))


def test_what_comes_into_being_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, target = write(tmp_path, TRL), tmp_path / "native.jsonl"

    def make_it_first(record: PreferencePair | Conversation) -> dict[str, object]:
        target.write_text("mine")
        return native_row(record)

    monkeypatch.setattr("dpolish.data.convert.native_row", make_it_first)
    with pytest.raises(ConfigError, match="was made by something else meanwhile"):
        convert(path, str(target))
    assert target.read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["native.jsonl", "rows.jsonl"]


def test_a_full_disk_is_an_error_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dpolish.data.convert.os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        convert(write(tmp_path, TRL), str(tmp_path / "native.jsonl"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rows.jsonl"]


def test_examples_of_all_shapes_have_native_rows() -> None:
    for registry in (FORMATS, SFT_FORMATS):
        for shape in registry.values():
            reading = shape.read(Fields(Row("x:1", dict(shape.example))))
            if isinstance(reading, PreferencePair | Conversation):
                assert native_row(reading)
