"""zarr folders, read as the format describes; refusals are in test_hostile, whole models in test_checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from dpolish.errors import ModelError
from dpolish.nemo.archive import open_archive
from dpolish.nemo.zarr_store import read_json, read_zarr
from tests.nemo.archives import Files, raw_bytes, unpack, zarr_files


def wanted(name: str) -> bool:
    return "extra" not in name


def read(files: Files, place: Path) -> dict[str, torch.Tensor]:
    with open_archive(unpack(files, place)) as archive:
        return {name: tensor.whole().load() for name, tensor in read_zarr(archive, "w/", wanted).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(4, 6).to(dtype)
    found = read(zarr_files({"model.embedding.x": tensor}, folder="w/", tp=2), tmp_path)
    assert torch.equal(found["model.embedding.x"], tensor)
    assert found["model.embedding.x"].dtype == dtype


def test_any_chunks(tmp_path: Path) -> None:
    """Chunks that do not divide an axis are whole in their files, beyond the end too."""
    whole = torch.arange(35.0).view(5, 7)
    for index, (high, wide) in enumerate([(5, 7), (2, 3), (4, 7), (1, 1), (5, 4)]):
        about = {"zarr_format": 2, "shape": [5, 7], "chunks": [high, wide], "dtype": "<f4", "order": "C"}
        files = {"w/t/.zarray": json.dumps({**about, "compressor": None, "filters": None}).encode()}
        files["w/t/.zattrs"] = b"{}"
        for row in range(-(-5 // high)):
            for column in range(-(-7 // wide)):
                chunk = torch.full((high, wide), float("nan"))
                part = whole[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                chunk[: part.shape[0], : part.shape[1]] = part
                files[f"w/t/{row}.{column}"] = raw_bytes(chunk)
        place = tmp_path / str(index)
        assert torch.equal(read(files, place)["t"], whole)
        with open_archive(place) as archive:
            for row, part in enumerate(read_zarr(archive, "w/", wanted)["t"].slices()):
                assert torch.equal(part.load(), whole[row])


def test_what_is_no_tensor_is_left_alone(tmp_path: Path) -> None:
    files = zarr_files({"t": torch.ones(2)}, folder="w/")
    files |= {
        "w/objects/shard_0_4.pt": b"harm",
        "w/t.sync/x": b"",
        "w/extra/.zarray": b"no JSON",
        "other/.zarray": b"no",
    }
    assert list(read(files, tmp_path)) == ["t"]


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b'"x"', b"{}x", b"[" * 10_000])
def test_json(tmp_path: Path, text: bytes) -> None:
    with open_archive(unpack({"a": text, "b": b'{"x": 1}'}, tmp_path)) as archive:
        assert read_json(archive.span("b"), 100) == {"x": 1}
        with pytest.raises(ModelError, match="no JSON"):
            read_json(archive.span("a"), 20_000)
        with pytest.raises(ModelError, match="at most 0"):
            read_json(archive.span("b"), 0)
