"""Tensors of torch.save files equal those that torch loads; refusals are in test_hostile."""

import io
import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from dpolish.errors import ModelError
from dpolish.nemo.archive import Descriptor, LooseFile, Span
from dpolish.nemo.torch_file import FileTensor, read_numbers, read_one_tensor, read_torch_file
from tests.nemo.archives import SHARED, torch_bytes

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


def span_of(content: bytes, folder: Path) -> Span:
    """The content in the midst of a file, as a member of an archive lies."""
    (folder / "file").write_bytes(b"before" + content + b"behind")
    return Span(LooseFile(str(folder / "file")), "file", 6, len(content))


def read(value: object, folder: Path) -> dict[str, FileTensor]:
    return read_torch_file(span_of(torch_bytes(value), folder))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = (torch.randn(5, 3) * 100).to(dtype)
    found = read({"x": tensor}, tmp_path)["x"]
    assert (found.shape, found.dtype) == ((5, 3), dtype)
    assert torch.equal(found.load(), tensor)
    assert torch.equal(found.load_rows(1, 3), tensor[1:4])
    assert found.stored().load().is_contiguous()


def test_views(tmp_path: Path) -> None:
    """Shards are sometimes saved as views, with the bytes of the whole behind them."""
    whole = torch.randn(6, 8)
    views = {
        "rows": whole[2:4],
        "columns": whole[:, 4:],
        "turned": whole.T,
        "every second": whole[::2, ::3],
        "scalar": whole[3, 3],
        "nothing": whole[:0],
        "nothing wide": whole[:, :0],
    }
    for name, view in views.items():
        tensor = read({"x": view}, tmp_path)["x"]
        loaded = tensor.load()
        assert loaded.shape == view.shape
        assert loaded.is_contiguous()
        assert torch.equal(loaded, view), name
        if tensor.shape and tensor.shape[0] > 1:
            assert torch.equal(tensor.load_rows(1, 1), view[1:2]), name


def test_loaded_tensors_are_the_callers_own(tmp_path: Path) -> None:
    tensor = read({"x": torch.zeros(3)}, tmp_path)["x"]
    tensor.load().fill_(1)
    assert torch.equal(tensor.load(), torch.zeros(3))


def test_containers_and_parameters(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    for value in (module.state_dict(), dict(module.named_parameters()), OrderedDict(module.named_parameters())):
        found = read(value, tmp_path)
        assert list(found) == ["weight", "bias"]
        assert torch.equal(found["weight"].load(), module.weight.detach())


def test_extra_state_is_left_unread(tmp_path: Path) -> None:
    extra = {"a._extra_state": None, "b._extra_state": io.BytesIO(b"\x80\x02harm."), "c._extra_state": io.BytesIO()}
    assert list(read({**extra, "d._extra_state": torch.ones(1), "x": torch.ones(1)}, tmp_path)) == ["x"]
    with pytest.raises(ModelError, match="'y' is binary data"):
        read({"y": io.BytesIO(b"z")}, tmp_path)


def test_one_tensor(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3)
    assert torch.equal(read_one_tensor(span_of(torch_bytes(tensor), tmp_path)).load(), tensor)
    with pytest.raises(ModelError, match="no tensor"):
        read_one_tensor(span_of(torch_bytes({"x": tensor}), tmp_path))


def test_tied_tensors_share_their_bytes(tmp_path: Path) -> None:
    tensor = torch.randn(50, 50)
    found = read({"a": tensor, "b": tensor}, tmp_path)
    assert torch.equal(found["a"].load(), found["b"].load())
    with pytest.raises(ModelError, match="describes 30000 bytes of tensors and holds 1"):
        read(dict.fromkeys("abc", tensor), tmp_path)


def test_files_without_a_byte_order(tmp_path: Path) -> None:
    """Before version 2.1, torch did not write it; its files are little-endian."""
    out, tensor = io.BytesIO(), torch.randn(3)
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"x": tensor}))) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.namelist():
            if not entry.endswith(("byteorder", "serialization_id", "format_version", "storage_alignment")):
                target.writestr(entry, source.read(entry))
    assert torch.equal(read_torch_file(span_of(out.getvalue(), tmp_path))["x"].load(), tensor)


def _wide_zip(entries: dict[str, tuple[int, bytes]], path: Path) -> None:
    """A zip whose entries have any size, only their first bytes given: the rest is a hole."""
    directory = b""
    with path.open("wb") as file:
        for name, (size, content) in entries.items():
            at, most = file.tell(), 0xFFFFFFFF
            extra = struct.pack("<HHQQ", 1, 16, size, size) if size > most else b""
            extra += struct.pack("<HH", 0x4246, 0)  # torch's padding
            short = min(size, most)
            fixed = struct.pack("<HHHHHLLLHH", 45, 0, 0, 0, 0, 0, short, short, len(name), len(extra))
            file.write(b"PK\x03\x04" + fixed + name.encode() + extra + content)
            file.seek(size - len(content), os.SEEK_CUR)
            wide = [number for number in (size, size, at) if number > most]
            extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
            sizes = (0, short, short, len(name), len(extra), 0, 0, 0, 0, min(at, most))
            fixed = struct.pack("<6H3L5H2L", 45, 45, 0, 0, 0, 0, *sizes)
            directory += b"PK\x01\x02" + fixed + name.encode() + extra
        start, count = file.tell(), len(entries)
        file.write(directory)
        end = file.tell()
        file.write(b"PK\x06\x06" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, count, count, len(directory), start))
        file.write(b"PK\x06\x07" + struct.pack("<LQL", 0, end, 1))
        file.write(b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, count, count, len(directory), 0xFFFFFFFF, 0))


def _listed(name: str, storage: int, numbers: int, shape: tuple[int, ...]) -> str:
    """The instructions of a pickle that put a contiguous tensor into a mapping."""
    strides = [1024, 1] if len(shape) == 2 else [1]
    sizes, steps = ("(" + "".join(f"I{number}\n" for number in numbers) + "t" for numbers in (shape, strides))
    identity = f"(S'storage'\nctorch\nFloatStorage\nS'{storage}'\nS'cpu'\nI{numbers}\ntQ"
    return f"S'{name}'\nctorch._utils\n_rebuild_tensor_v2\n({identity}I0\n{sizes}{steps}I00\nNtRs"


def test_a_file_of_more_than_4_gib(tmp_path: Path) -> None:
    rows = 5 << 18
    lists = f"(d{_listed('big', 0, rows * 1024, (rows, 1024))}{_listed('small', 1, 2, (2,))}."
    small = struct.pack("<2f", 1.5, -2.0)
    entries = {
        "archive/data.pkl": (len(lists), lists.encode()),
        "archive/data/0": (rows * 4096, struct.pack("<f", 7.0)),
        "archive/data/1": (8, small),
    }
    _wide_zip(entries, tmp_path / "big")
    number = os.open(tmp_path / "big", os.O_RDONLY)
    found = read_torch_file(Span(Descriptor(number), "big", 0, (tmp_path / "big").stat().st_size))
    assert torch.equal(found["small"].load(), torch.tensor([1.5, -2.0]))
    assert found["big"].shape == (rows, 1024)
    assert found["big"].load_rows(0, 1)[0, 0] == 7.0
    assert torch.equal(found["big"].load_rows(rows - 1, 1), torch.zeros(1, 1024))
    os.close(number)


def test_numbers_that_are_not_there_take_no_memory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="fewer than its tensor"):
        read_numbers(span_of(b"abcd", tmp_path), 0, 1 << 50, torch.float32)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real archives beside the checkout, ../shared")
def test_a_genuine_file_is_what_torch_loads() -> None:
    from dpolish.nemo.archive import open_archive

    with open_archive(SHARED / "legacy_gpt345m_style.nemo") as archive:
        span = archive.span("model_weights.ckpt")
        expected = torch.load(io.BytesIO(span.read_all(1 << 22)), weights_only=True)
        found = read_torch_file(span)
    assert found.keys() == {name for name in expected if not name.endswith("_extra_state")}
    with open_archive(SHARED / "legacy_gpt345m_style.nemo") as archive:
        for name, tensor in read_torch_file(archive.span("model_weights.ckpt")).items():
            assert torch.equal(tensor.load(), expected[name]), name
