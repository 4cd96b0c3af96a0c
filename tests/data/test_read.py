"""Every file is rows, or a DataError that names the line."""

import gzip
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from dpolish.data.read import Fault, Row, json_type, read_rows, scan
from dpolish.errors import DataError

ROW = {"prompt": "Wie heißt du? 🙂", "chosen": 'Ich: "Ada"', "rejected": "x"}
LINE = json.dumps(ROW, ensure_ascii=False).encode()
GOOD = LINE + b"\n"


def write(folder: Path, content: bytes, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def wheres(path: str) -> list[str]:
    return [row.where.removeprefix(f"{path}:") for row in read_rows(path)]


# What is accepted


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param(GOOD * 2, ["1", "2"], id="plain"),
        pytest.param(LINE, ["1"], id="no newline at the end"),
        pytest.param(b"\xef\xbb\xbf" + GOOD * 2, ["1", "2"], id="byte order mark"),
        pytest.param((LINE + b"\r\n") * 2, ["1", "2"], id="CRLF"),
        pytest.param(b"\n \t\n" + GOOD + b"\r\n\n" + GOOD + b"\n", ["3", "6"], id="blank lines"),
        pytest.param(b"  " + LINE + b"  \n", ["1"], id="blanks around"),
    ],
)
def test_lines_are_rows_with_their_numbers(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    path = write(tmp_path, content)
    assert wheres(path) == lines
    assert {json.dumps(row.value) for row in read_rows(path)} == {json.dumps(ROW)}


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("before", [b"", b"\n\n", b"\xef\xbb\xbf \n"])
def test_list_elements_have_the_line_they_begin_on(tmp_path: Path, indent: int | None, before: bytes) -> None:
    rows = [{"a": f'[{{,"\\{index}', "b": [index, {"c": "]}"}]} for index in range(50)]
    text = json.dumps(rows, indent=indent)
    begins = [number for number, line in enumerate(text.split("\n"), 1) for _ in range(line.count('{"a"'))]
    if indent is not None:  # each element's brace stands on a line of its own, the key `a` on the next
        begins = [number - 1 for number, line in enumerate(text.split("\n"), 1) if '"a"' in line]
    path = write(tmp_path, before + text.encode(), "rows.json")
    found = list(read_rows(path))
    assert [row.value for row in found] == rows
    assert [row.where for row in found] == [f"{path}:{line + before.count(b'%c' % 10)}" for line in begins]


def test_a_list_longer_than_the_buffer_is_whole(tmp_path: Path) -> None:
    rows = [{"text": 'é"\\' * length} for length in (1, 100_000, 3, 600_000)]
    path = write(tmp_path, orjson.dumps(rows, option=orjson.OPT_INDENT_2), "rows.json")
    assert [row.value for row in read_rows(path)] == rows


@given(
    st.lists(
        st.dictionaries(st.text(), st.recursive(st.text() | st.integers(0, 9), st.lists, max_leaves=3), max_size=3),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([None, 0, 1]),
)
def test_any_list_is_read_as_a_parser_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], indent: int | None
) -> None:
    path = write(tmp_path_factory.getbasetemp(), json.dumps(rows, indent=indent).encode(), "any.json")
    assert [row.value for row in read_rows(path)] == rows


def test_lines_may_stand_in_a_file_named_json_or_anything(tmp_path: Path) -> None:
    assert wheres(write(tmp_path, GOOD * 2, "rows.json")) == ["1", "2"]
    assert wheres(write(tmp_path, GOOD * 2, "rows")) == ["1", "2"]
    assert wheres(write(tmp_path, b"[" + LINE + b"]", "rows.txt")) == ["1"]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst", "rows.jsonl"])
@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_files_are_known_by_their_bytes(tmp_path: Path, name: str, compress: object) -> None:
    assert callable(compress)
    path = write(tmp_path, compress(GOOD * 3) + compress(GOOD * 2), name)  # two members, one behind the other
    assert wheres(path) == ["1", "2", "3", "4", "5"]
    assert wheres(write(tmp_path, compress(b"[" + LINE + b",\n" + LINE + b"]"), f"{name}.json")) == ["1", "2"]


def test_zeros_behind_compressed_data_are_padding(tmp_path: Path) -> None:
    assert wheres(write(tmp_path, gzip.compress(GOOD) + b"\0" * 2000, "rows.gz")) == ["1"]


def test_parquet_rows_are_counted(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    table = pa.table({"prompt": ["a", "b"], "chosen": [[{"role": "assistant", "content": "x"}], None]})
    parquet.write_table(table, path, row_group_size=1)
    rows = list(read_rows(path))
    assert [row.where for row in rows] == [f"{path}:row 1", f"{path}:row 2"]
    assert rows[0].value == {"prompt": "a", "chosen": [{"role": "assistant", "content": "x"}]}
    assert rows[1].value == {"prompt": "b", "chosen": None}
    packed = write(tmp_path, gzip.compress(Path(path).read_bytes()), "rows.parquet.gz")
    assert [row.value for row in read_rows(packed)] == [row.value for row in rows]


# What is refused


@dataclass(frozen=True)
class Bad:
    """A bad file: its content, and for each fault its `line[:column]` and some words of it."""

    content: bytes
    faults: tuple[tuple[str, str], ...]
    name: str = "rows.jsonl"
    good: int = 0


def compressed(content: bytes) -> bytes:
    return gzip.compress(content)


CORPUS = {
    "empty": Bad(b"", (("1", "no rows"),)),
    "blank lines only": Bad(b"\n \n\r\n", (("1", "no rows"),)),
    "byte order mark only": Bad(b"\xef\xbb\xbf", (("1", "no rows"),)),
    "empty list": Bad(b"[]", (("1", "no rows"),), "rows.json"),
    "malformed line": Bad(GOOD + b'{"a": 1, b: 2}\n' + GOOD, (("2:10", "near '{\"a\": 1, b: 2}'"),), good=2),
    "several malformed lines": Bad(
        b"{\n" + GOOD + b'{"a" 1}\n{"a": tru}\n',
        (("1:", "not valid"), ("3:6", "not valid"), ("4:7", "not valid")),
        good=1,
    ),
    "trailing comma": Bad(b'{"a": 1,}\n', (("1:", "comma"),)),
    "single quotes": Bad(b"{'a': 1}\n", (("1:2", "not valid"),)),
    "column counts characters": Bad('{"ä🙂": x}\n'.encode(), (("1:8", "not valid"),)),
    "truncated last line": Bad(GOOD + LINE[:-9], (("2:", "is it truncated?"),), good=1),
    "cut within a key": Bad(GOOD + b'{"pro', (("2:", "truncated"),), good=1),
    "cut within a character": Bad(GOOD + '{"é'.encode()[:-1], (("2:3", "not UTF-8"),), good=1),
    "CR line ends": Bad(GOOD.replace(b"\n", b"\r") * 3, ((f"1:{len(LINE.decode()) + 2}", "CR alone"),)),
    "UTF-16 with mark": Bad(GOOD.decode().encode("utf-16"), (("1", "UTF-16"),)),
    "UTF-16 without mark": Bad(GOOD.decode().encode("utf-16-le"), (("1", "iconv -f UTF-16LE"),)),
    "UTF-16 big-endian": Bad(GOOD.decode().encode("utf-16-be"), (("1", "iconv -f UTF-16BE"),)),
    "UTF-32": Bad(GOOD.decode().encode("utf-32"), (("1", "UTF-32"),)),
    "Latin-1": Bad(GOOD + '{"a": "für"}\n'.encode("latin-1"), (("2:9", "byte 9 of the record is 0xFC"),), good=1),
    "encoded surrogate": Bad(b'{"a": "\xed\xa0\x80"}\n', (("1:8", "not UTF-8"),)),
    "lone surrogate escape": Bad(b'{"a": "\\ud800"}\n', (("1:8", "without its other half"),)),
    "lone low surrogate escape": Bad(b'{"a": "x\\udc00 y"}\n', (("1:9", "without its other half"),)),
    "raw NUL in a string": Bad(b'{"a": "x\0y"}\n' + GOOD, (("1:9", "raw NUL"),), good=1),
    "raw NUL before a row": Bad(b"\0\0\0\0" + GOOD, (("1:1", "raw NUL"),)),
    "zeros behind the rows": Bad(GOOD + b"\0" * 100, (("2:1", "raw NUL"),), good=1),
    "raw tab in a string": Bad(b'{"a": "x\ty"}\n', (("1:9", "control character"),)),
    "NaN": Bad(b'{"a": NaN}\n', (("1:7", "NaN is not JSON"),)),
    "Infinity": Bad(b'{"a": Infinity}\n', (("1:7", "Infinity is not JSON"),)),
    "minus Infinity": Bad(b'{"a": -Infinity}\n', (("1:8", "-Infinity is not JSON"),)),
    "number beyond a double": Bad(b'{"a": 1e999}\n', (("1:", "infinity"),)),
    "deep nesting": Bad(GOOD + b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n" + GOOD, (("2:", "deep"),), good=2),
    "deep objects": Bad(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, (("1:", "deep"),)),
    "repeated key": Bad(GOOD + b'{"a": 1, "b": 2, "a": 3}\n', (("2", "the key 'a' stands twice"),), good=1),
    "repeated key with blanks": Bad(b'{"a" : 1, "b": 2, "a"\t: 3}\n', (("1", "the key 'a' stands twice"),)),
    "repeated key inside": Bad(b'{"a": [{"b": 1, "b": 1}]}\n', (("1", "the key 'b' stands twice"),)),
    "list rows": Bad(GOOD + b'["a", "b"]\n', (("2", "expected a JSON object, got a list"),), good=1),
    "string row": Bad(b'"prompt"\n' + GOOD, (("1", "got a string"),), good=1),
    "null, number, boolean": Bad(
        b"null\n1\ntrue\n", (("1", "got null"), ("2", "got a number"), ("3", "got a boolean"))
    ),
    "two rows on a line": Bad(LINE + b" " + GOOD, (("1:", "not valid JSON"),)),
    "a list named .jsonl": Bad(b'[\n{"a": 1}\n]\n', (("1", "name the file .json"),)),
    "a list on one line named .jsonl": Bad(b'[{"a": 1}]\n', (("1", "is named .json"),)),
    "one object over many lines": Bad(b'{\n"data": [1]\n}', (("1", "expected a list of rows"),), "rows.json"),
    "list not closed": Bad(b'[\n{"a": 1},\n{"b": 2}\n', (("3:1", "not closed"),), "rows.json", good=2),
    "list cut within an element": Bad(
        b'[\n{"a": 1},\n{"b": "x', (("3:", "not valid"), ("3:1", "not closed")), "rows.json", good=1
    ),
    "list cut after a comma": Bad(b'[\n{"a": 1},\n', (("2:10", "not closed"),), "rows.json", good=1),
    "list with bad element": Bad(b'[{"a": 1},\n {"b" 2},\n {"c": 3}]', (("2:7", "not valid"),), "rows.json", good=2),
    "bad element on a line with others": Bad(
        '[{"ä": 1}, {"b" 2}]'.encode(), (("1:17", "not valid"),), "rows.json", good=1
    ),
    "list with missing comma": Bad(b'[{"a": 1}\n{"b": 2}]', (("2:1", "not valid"),), "rows.json"),
    "list with trailing comma": Bad(b'[{"a": 1},\n]', (("1:11", "comma"),), "rows.json", good=1),
    "list with double comma": Bad(b'[{"a": 1},,{"b": 1}]', (("1:11", "comma"),), "rows.json", good=2),
    "list with other types": Bad(b'[{"a": 1}, 3,\n"x"]', (("1", "a number"), ("2", "a string")), "rows.json", good=1),
    "something behind the list": Bad(b'[{"a": 1}]\n{"b": 2}', (("2:1", "behind"),), "rows.json", good=1),
    "list with stray brace": Bad(b'[{"a": 1}}, {"b": 2}]', (("1:10", "not valid"),), "rows.json", good=1),
    "gzip cut": Bad(compressed(GOOD * 2)[:-9], (("", "gzip data breaks off"),), "rows.jsonl.gz", good=-1),
    "gzip header only": Bad(compressed(GOOD)[:4], (("1", "gzip data breaks off"),), "rows.jsonl.gz"),
    "gzip with wrong checksum": Bad(
        compressed(GOOD)[:-8] + b"\0\0\0\0" + compressed(GOOD)[-4:], (("", "gzip data is corrupt"),), good=-1
    ),
    "gzip with rubbish behind": Bad(compressed(GOOD) + b"rubbish", (("", "gzip data is corrupt"),), good=-1),
    "not Zstandard": Bad(b"\x28\xb5\x2f\xfd" + b"rubbish" * 9, (("1", "Zstandard data is corrupt"),)),
    "Zstandard cut": Bad(
        zstandard.ZstdCompressor().compress(GOOD * 9)[:-3], (("1", "Zstandard data breaks off"),), "rows.zst"
    ),
    "Parquet cut": Bad(b"PAR1" + b"rubbish" * 9, (("row 1", "Parquet"),), "rows.parquet"),
}


@pytest.mark.parametrize("bad", CORPUS.values(), ids=CORPUS.keys())
def test_bad_files_are_refused_with_every_line(tmp_path: Path, bad: Bad) -> None:
    path = write(tmp_path, bad.content, bad.name)
    items = list(scan(path))
    faults = [item for item in items if isinstance(item, Fault)]
    assert len(faults) == len(bad.faults)
    for fault, (place, words) in zip(faults, bad.faults, strict=True):
        where = fault.where.removeprefix(f"{path}:")
        assert where.startswith(place) if place.endswith(":") or not place else where == place
        assert words in fault.what
    if bad.good >= 0:
        assert sum(isinstance(item, Row) for item in items) == bad.good
    with pytest.raises(DataError) as error:
        list(read_rows(path))
    assert all(str(fault) in str(error.value) for fault in faults)


def test_many_faults_are_shown_up_to_twenty_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, (GOOD + b"{\n") * 1000)
    taken: list[str] = []
    with pytest.raises(DataError) as error:
        taken.extend(row.where for row in read_rows(path))
    lines = str(error.value).splitlines()
    assert lines[0] == "1000 problems:"
    assert lines[1].startswith(f"{path}:2:")
    assert lines[-1] == "… and 980 more"
    assert len(lines) == 22
    assert len(list(scan(path))) == 2000


@given(st.data())
def test_one_changed_byte_is_a_row_or_a_fault_of_its_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(LINE) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != 10))
    changed = LINE[:at] + bytes([byte]) + LINE[at + 1 :]
    path = write(tmp_path_factory.getbasetemp(), GOOD + changed + b"\n" + GOOD, "mutated.jsonl")
    before, item, behind = scan(path)
    assert before == Row(f"{path}:1", dict(ROW))
    assert behind == Row(f"{path}:3", dict(ROW))
    try:
        expected = json.loads(changed.decode(), parse_constant=lambda _: pytest.fail("a constant cannot come about"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        expected = None
    if isinstance(item, Fault):
        assert item.where.startswith(f"{path}:2")
        assert expected is None or "twice" in item.what
    else:
        assert item == Row(f"{path}:2", expected)


@given(st.binary(max_size=60), st.sampled_from(["any.jsonl", "any.json", "any"]))
def test_any_bytes_are_rows_or_faults(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), content, name)
    items = list(scan(path))
    assert items
    assert all(isinstance(item, Row | Fault) for item in items)


@given(st.lists(st.sampled_from([*'[]{},:"\\ \n1aé', '{"a":1}']), max_size=25).map("".join))
def test_any_list_of_marks_is_rows_or_faults(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), f"[{text}]".encode(), "marks.json")
    items = list(scan(path))
    assert items
    try:
        rows = json.loads(Path(path).read_text())
    except json.JSONDecodeError:
        assert any(isinstance(item, Fault) for item in items)
    else:
        dicts = [row for row in rows if isinstance(row, dict)]
        assert [item.value for item in items if isinstance(item, Row)] == dicts


def test_a_key_check_does_not_stumble_over_text_that_looks_like_keys(tmp_path: Path) -> None:
    value = {"a": '"a": "a": ":"', "b": ["x\\", {"a": '":'}], "c\\": 1}
    path = write(tmp_path, orjson.dumps(value) + b"\n")
    assert [row.value for row in read_rows(path)] == [value]


# Sizes


def test_lines_over_the_limit_are_faults_and_reading_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpolish.data.read.MAX_RECORD_BYTES", 100)
    exact = b'{"a": "' + b"x" * 90 + b'"}\n'
    assert len(exact) == 100
    content = exact + b'{"a": "' + b"x" * 500 + b'"}\n' + GOOD + b"y\r" * 200
    path = write(tmp_path, content)
    first, second, third, fourth = scan(path)
    assert isinstance(first, Row)
    assert second == Fault(f"{path}:2", "the line is longer than 16 MiB")
    assert third == Row(f"{path}:3", dict(ROW))
    assert isinstance(fourth, Fault)
    assert "CR" in fourth.what


def test_an_element_over_the_limit_ends_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpolish.data.read.MAX_RECORD_BYTES", 100)
    monkeypatch.setattr("dpolish.data.read.BUFFER_BYTES", 10)
    path = write(tmp_path, b'[{"a": 1},\n{"a": "' + b"x" * 500 + b'"}]', "rows.json")
    first, second = scan(path)
    assert first == Row(f"{path}:1", {"a": 1})
    assert isinstance(second, Fault)
    assert "longer than 16 MiB" in second.what


def test_a_huge_line_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": "')
        file.seek(500 * 2**20)  # a hole: nothing is written
        file.write(b"\n" + GOOD)
    code = (
        "import resource, sys\n"
        "from dpolish.data.read import scan\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "fault, row = scan(sys.argv[1])\n"
        "assert fault.where.endswith(':1') and row.where.endswith(':2'), (fault, row)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 80 * 2**20


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor(level=3).compress])
def test_a_bomb_is_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: object) -> None:
    assert callable(compress)
    monkeypatch.setattr("dpolish.data.inflate._FREE_BYTES", 2**16)
    path = write(tmp_path, compress(b"\n" * 4 * 2**20), "bomb.jsonl.gz")
    (fault,) = scan(path)
    assert isinstance(fault, Fault)
    assert "-fold" in fault.what


# Paths


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "train.jsonl")
    with pytest.raises(DataError, match=r"trian.jsonl: no such file. Did you mean '.*/train.jsonl'"):
        list(read_rows(str(tmp_path / "trian.jsonl")))
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"no such file. Did you mean '.*/data'"):
        list(read_rows(str(tmp_path / "dta" / "train.jsonl")))
    with pytest.raises(DataError, match=r"^/no/such/folder: no such file"):
        list(read_rows("/no/such/folder"))


def test_a_missing_relative_file_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD, "train.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^train.json: no such file. Did you mean 'train.jsonl'"):
        list(read_rows("train.json"))


def test_a_folder_names_its_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder; name the files in it: it is empty"):
        list(read_rows(str(tmp_path)))
    write(tmp_path, GOOD, "train.jsonl")
    with pytest.raises(DataError, match=r"it holds train.jsonl"):
        list(read_rows(str(tmp_path)))


def test_what_is_no_regular_file_is_refused() -> None:
    with pytest.raises(DataError, match="/dev/null: not a regular file"):
        list(read_rows("/dev/null"))


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["x", "x"]), path)
    (fault,) = scan(path)
    assert fault == Fault(f"{path}:row 1", "two columns are named x: rename or drop one")


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.parquet")
    parquet.write_table(pa.table({"x": pa.array([], pa.string())}), path)
    (fault,) = scan(path)
    assert isinstance(fault, Fault)
    assert "no rows" in fault.what


def test_reading_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, dpolish.data.formats, dpolish.data.summary\n"
        "print([name for name in ('torch', 'transformers', 'pyarrow') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_json_types_have_names() -> None:
    assert [json_type(value) for value in ({}, [], "", True, 1, 1.5, None, b"")] == [
        "an object",
        "a list",
        "a string",
        "a boolean",
        "a number",
        "a number",
        "null",
        "bytes",
    ]


def test_recursion_is_no_way_out(tmp_path: Path) -> None:
    inner = b'{"a":' * 900 + b'{"b": "x\\": y"}' + b"}" * 900
    (item,) = scan(write(tmp_path, inner + b"\n"))
    assert isinstance(item, Row | Fault)
