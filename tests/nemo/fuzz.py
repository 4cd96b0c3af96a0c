"""Checkpoints with random damage, most of it where it is looked at: in lists, descriptions and headers."""

import gzip
import io
import random
import tarfile
from collections.abc import Callable, Iterator

from tests.nemo.archives import Files, flat_files, settings, stacks, torch_dist_files, zarr_files
from tests.nemo.small_weights import random_weights

_VALUES = [
    b"\x00",
    b"\xff",
    b"\x80",
    b"\x7f",
    b"-1",
    b"99999999",
    b"\xff" * 4,
    b"\x00" * 8,
    b"\xff\xff\xff\x7f",
    b"../",
    b"0",
]
_LISTS = (".yaml", ".zarray", "metadata.json", ".metadata")


def seeds() -> list[Files]:
    """Sound checkpoints of every kind."""
    weights = random_weights()
    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    return [
        {**settings(), **flat_files(weights, "mcore-te")},
        {**settings(mcore_gpt=False, **sizes), **flat_files(weights, "legacy", tp=2, pp=2)},
        {**settings(), **zarr_files(stacks(weights))},
        {**settings(), **torch_dist_files(stacks(weights), tp=2)},
    ]


def mutants(seed: int) -> Iterator[bytes]:
    """Archives without end, the same for the same seed."""
    choose, sound = random.Random(seed), seeds()
    while True:
        files = dict(choose.choice(sound))
        if choose.random() < 0.75:
            for _ in range(choose.choice((1, 1, 1, 2, 5))):
                name = choose.choice([name for name in files if name.endswith(_LISTS)] + ["", ""])
                name = name or choose.choice(list(files))
                files[name] = _damaged(files[name], choose, _interesting(name, files[name], choose))
            yield _tar(files, choose)
        else:
            whole = _tar(files, choose)
            yield _damaged(whole, choose, choose.randrange(0, len(whole), 512) + choose.choice((0, 124, 148, 156, 345)))


def _interesting(name: str, content: bytes, choose: random.Random) -> int:
    """A place in a file; in one of tensors mostly in its list, or in the zip's own."""
    if not content:
        return 0
    if name.endswith((".ckpt", ".distcp")):
        places = [at for at in (content.find(b"data.pkl"), content.rfind(b"PK\x01\x02"), len(content) - 60) if at >= 0]
        return min(len(content) - 1, choose.choice(places) + choose.randrange(3000 if choose.random() < 0.7 else 60))
    return choose.randrange(len(content))


def _damaged(content: bytes, choose: random.Random, at: int) -> bytes:
    end = min(len(content), at + choose.choice((1, 2, 4, 40, 400)))
    value = choose.choice(_VALUES)
    ways: list[Callable[[], bytes]] = [
        lambda: content[:at] + bytes([choose.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + bytes([content[at] ^ 1 << choose.randrange(8)]) + content[at + 1 :] if content else b"",
        lambda: content[:at] + value + content[at + len(value) :],
        lambda: content[:at] + value + content[at:],
        lambda: content[:at] + content[end:],
        lambda: content[:at] + content[at:end] * 3 + content[end:],
        lambda: content[:at],
        lambda: content[:at] + choose.randbytes(end - at) + content[end:],
    ]
    return choose.choice(ways)()


def _tar(files: Files, choose: random.Random) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w:", format=choose.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    ) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1, mtime=0) if choose.random() < 0.2 else buffer.getvalue()
