"""What torch.save would have written: torch loads it, safely; so does every zip reader, also beyond 4 GB."""

import io
import zipfile

import pytest
import torch

from dpolish.nemo.stored import StoredTensor
from dpolish.nemo.write import torch_file as module
from dpolish.nemo.write.torch_file import torch_file
from tests.nemo.small_weights import random_weights, stored


def written(value: object) -> io.BytesIO:
    file, buffer = torch_file(value), io.BytesIO()
    file.write(buffer)
    assert len(buffer.getvalue()) == file.size
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_torch_loads_what_was_stored(dtype: torch.dtype) -> None:
    weights = random_weights(bias=True, dtype=dtype)
    state = torch.load(written(stored(weights)), weights_only=True)
    assert list(state) == list(weights)
    for name, tensor in weights.items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("value", [None, {}, [None], {"a": 1}])
def test_values_without_tensors(value: object) -> None:
    assert torch.load(written(value), weights_only=True) == value


def test_one_tensor_and_scalars_and_nothing() -> None:
    for tensor in (torch.randn(3, 4, 5), torch.tensor(2.5), torch.empty(0, 7)):
        (lazy,) = stored({"x": tensor}).values()
        loaded = torch.load(written(lazy), weights_only=True)
        assert torch.equal(loaded, tensor)
        assert loaded.stride() == tensor.stride()


def test_the_zip_is_sound_and_can_be_mapped() -> None:
    buffer = written(stored(random_weights()))
    with zipfile.ZipFile(buffer) as archive:
        assert archive.testzip() is None
        assert [entry.compress_type for entry in archive.infolist()] == [zipfile.ZIP_STORED] * len(archive.infolist())
        content = buffer.getvalue()
        for entry in archive.infolist():
            names, extra = (
                content[entry.header_offset + at] + 256 * content[entry.header_offset + at + 1] for at in (26, 28)
            )
            assert (entry.header_offset + 30 + names + extra) % 64 == 0, entry.filename


def test_sizes_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIMIT", 200)  # as if 200 bytes were 4 GB: every field of zip64 is used
    monkeypatch.setattr(module, "_MOST_RECORDS", 3)
    weights = random_weights()
    buffer = written(stored(weights))
    with zipfile.ZipFile(buffer) as archive:
        assert archive.testzip() is None
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())


def test_one_tensor_is_loaded_at_a_time() -> None:
    alive: list[int] = []
    most = 0

    def load() -> torch.Tensor:
        nonlocal most
        tensor = torch.zeros(64)
        alive.append(1)
        most = max(most, len(alive))
        import weakref

        weakref.finalize(tensor, alive.pop)
        return tensor

    written({str(index): StoredTensor((64,), torch.float32, load) for index in range(5)})
    assert most <= 2  # the next one is there before the name of the last one is free
