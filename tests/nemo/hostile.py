"""Archives that mean harm, each with the beginning of the refusal that it must get.

What would run if anything here were trusted creates `CANARY` in the working directory.
"""

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from tests.nemo.archives import (
    Files,
    config,
    flat_files,
    pack,
    settings,
    stacks,
    torch_bytes,
    torch_dist_files,
    unpack,
    zarr_files,
)
from tests.nemo.small_weights import random_weights

CANARY = "canary"
_FLAT, _DIST = "model_weights.ckpt", "model_weights/"


@dataclass(frozen=True, slots=True)
class Hostile:
    """How to make a checkpoint in a folder (its path comes back), and a pattern that the refusal matches."""

    name: str
    make: Callable[[Path], Path]
    refusal: str


class Harm:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def harm() -> Harm:
    return Harm(os.system, f"touch {CANARY}")


def good() -> Files:
    """A flat checkpoint that nothing is wrong with."""
    return {**settings(), **flat_files(random_weights(), "mcore-te")}


def corpus() -> Iterator[Hostile]:
    """All of them, one at a time: some are large."""
    for group in (_tars, _compressed, _folders, _configs, _torch_files, _zips, _zarr, _torch_dist):
        for name, make, refusal in group():
            yield Hostile(f"{group.__name__.strip('_')}: {name}", make, refusal)


Case = tuple[str, Callable[[Path], Path], str]


def write(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "x.nemo").write_bytes(content)
        return folder / "x.nemo"

    return make


def packed(files: Mapping[str, bytes]) -> Callable[[Path], Path]:
    return lambda folder: pack(files, folder / "x.nemo")


# --- the archive ------------------------------------------------------------------------------------------------------


def header(
    name: bytes, size: int | bytes = 0, kind: bytes = b"0", link: bytes = b"", magic: bytes = b"ustar\x0000"
) -> bytes:
    """A header of a tar member, its checksum right whatever it says."""
    wide = isinstance(size, int) and size >= 8**11
    length = b"\x80" + size.to_bytes(11, "big") if wide else b"%011o\0" % size if isinstance(size, int) else size
    fields = [name.ljust(100, b"\0"), b"0000644\0" * 3, length.ljust(12, b"\0"), b"0" * 11 + b"\0"]
    block = b"".join([*fields, b" " * 8, kind, link.ljust(100, b"\0"), magic]).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def member(name: bytes, content: bytes = b"x", kind: bytes = b"0") -> bytes:
    return header(name, len(content), kind) + content + bytes(-len(content) % 512)


END = bytes(1024)


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    return b"".join(member(f"./{name}".encode(), content) for name, content in files.items()) + END


def pax(records: Mapping[bytes, bytes], kind: bytes = b"x") -> bytes:
    lines = b""
    for key, value in records.items():
        rest = b" " + key + b"=" + value + b"\n"
        size = next(n for n in itertools.count(len(rest)) if n == len(rest) + len(str(n)))
        lines += str(size).encode() + rest
    return member(b"pax", lines, kind)


def _many_members(folder: Path) -> Path:
    with (folder / "x.nemo").open("wb") as file:
        for index in range(200_001):
            file.write(header(b"model_weights/a_rather_long_name_of_a_tensor_in_some_layer_%06d/0.0.0" % index))
        file.write(END)
    return folder / "x.nemo"


def _tars() -> Iterator[Case]:
    whole = tar_bytes(good())
    named = {
        "a name with ..": (b"./../evil", "names must stay inside"),
        "a name with .. within": (b"./a/../../evil", "names must stay inside"),
        "an absolute name": (b"/tmp/evil", "names must stay inside"),
        "a Windows name": (b"a\\..\\evil", "characters that no checkpoint uses"),
        "a drive": (b"C:evil", "characters that no checkpoint uses"),
        "an escape sequence": (b"a\x1b[2Jb", "characters that no checkpoint uses"),
        "a name that is no text": (b"a\xff\xfe", "no UTF-8"),
        "a file without a name": (b"./", "without a name|a folder|kind"),
        "a repeated name": (b"model_config.yaml", "twice"),
        "a name repeated in another spelling": (b"./model_config.yaml", "twice"),
        "a file below a file": (b"model_config.yaml/x", "both a file and a folder"),
    }
    for name, (bad, refusal) in named.items():
        yield name, write(member(bad) + whole), refusal
    kinds = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
    kinds |= {b"S": "a sparse file", b"M": "a part", b"V": "of the kind", b"7": "of the kind"}
    for kind, what in kinds.items():
        yield f"a member of kind {kind.decode()}", write(header(b"evil", 0, kind, b"/etc/passwd") + whole), what
    yield "a folder with content", write(member(b"d", b"x" * 10, b"5") + whole), "a folder with content"
    yield "a long name that climbs", write(member(b"n", b"../" * 60 + b"evil\0", b"L") + member(b"x") + whole), "inside"
    yield "a pax name that climbs", write(pax({b"path": b"../evil"}) + member(b"x") + whole), "names must stay inside"
    yield "a name for all", write(pax({b"path": b"x"}, b"g") + whole), "gives all its members one path"
    yield "a sparse pax file", write(pax({b"GNU.sparse.major": b"1"}) + whole), "a sparse file"
    yield "a damaged pax header", write(member(b"p", b"99999 path=x\n", b"x") + whole), "damaged extended header"
    yield (
        "a pax size that is no number",
        write(pax({b"size": b"-1"}) + member(b"x") + whole),
        "has a header with the size",
    )
    yield "a pax header of 4 GiB", write(header(b"p", 1 << 32, b"x") + whole), "extended header of 4294967296"
    yield "a long link of 1 MB", write(member(b"p", b"a" * 1_000_000, b"L") + whole), "extended header of 1000000"
    yield "a size beyond the end", write(header(b"big", 1 << 40) + whole), "in the middle of 'big'"
    yield (
        "a binary size beyond the end",
        write(header(b"big", b"\x80" + b"\xff" * 11) + whole),
        "in the middle of 'big'",
    )
    yield "a negative size", write(header(b"big", b"\xff" * 12) + whole), "no tar archive"
    yield "a wrong checksum", write(whole[:105] + b"1" + whole[106:]), "no tar archive"
    yield "a wrong checksum later", write(member(b"x") + b"y" + whole[1:]), "damaged header at byte 1024"
    yield "no end mark", write(whole[:-1024]), "without the end mark"
    yield "half of it", write(whole[: len(whole) // 2]), "ends in the middle"
    yield "another archive behind it", write(whole + whole), "behind its end mark"
    yield "2 MB behind it", write(whole + bytes(2 << 20)), "behind its end mark"
    yield "200,001 members", _many_members, "more than 200000 files"
    yield "nothing", write(b""), "no tar archive"
    yield "noise", write(bytes(range(256)) * 8), "no tar archive"


def _compressed() -> Iterator[Case]:
    bomb = header(b"zeros", 65 << 20) + bytes(65 << 20) + END
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": lambda data: gzip.compress(data, 1, mtime=0),
        "bzip2": bz2.compress,
        "xz": lambda data: lzma.compress(data, preset=0),
    }
    whole = tar_bytes(good())
    for name, compress in packers.items():
        yield f"a bomb of {name}", write(compress(bomb)), "grows to more than 64 MiB"
        yield f"half of a {name} file", write(compress(whole)[:2000]), "middle|cannot be decompressed"
        yield f"{name} twice", write(compress(compress(whole))), "no tar archive under its compression"
        yield f"bytes behind {name}", write(compress(whole) + b"more"), "goes on behind"
    yield "empty parts", write(gzip.compress(whole) + gzip.compress(b"") * 1000), "empty compressed parts"
    yield "a hole in gzip", write(gzip.compress(whole)[:500] + bytes(500)), "cannot be decompressed|middle"
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 27}]
    yield "xz that wants 128 MiB", write(lzma.compress(whole, filters=filters)), "cannot be decompressed"
    yield "another compression", write(b"\x28\xb5\x2f\xfd" + whole), "compressed in a way"
    yield "a zip", write(b"PK\x03\x04" + whole), "compressed in a way"


def _folders() -> Iterator[Case]:
    def folder(change: Callable[[Path], None]) -> Callable[[Path], Path]:
        def make(where: Path) -> Path:
            unpack(good(), where / "x")
            change(where / "x")
            return where / "x"

        return make

    def replace_config(target: str) -> Callable[[Path], None]:
        def change(place: Path) -> None:
            (place / "model_config.yaml").unlink()
            (place / "model_config.yaml").symlink_to(target)

        return change

    def deep(place: Path) -> None:
        (place / "/".join("abcdefghijklmnop")).mkdir(parents=True)

    yield "a link out of it", folder(replace_config("/etc/hostname")), "leads out of the folder"
    yield "a link up", folder(replace_config("../../x.yaml")), "leads out of the folder"
    yield "a link to nothing", folder(replace_config("absent")), "does not lead to a file"
    yield "a link to itself", folder(replace_config("model_config.yaml")), "does not lead to a file"
    yield "a folder that is a link", folder(lambda place: (place / "loop").symlink_to(".")), "does not lead to a file"
    yield "a folder elsewhere", folder(lambda place: (place / "d").symlink_to("/usr")), "leads out of the folder"
    yield "a pipe", folder(lambda place: os.mkfifo(place / "model_weights.distcp")), "neither a plain file nor a folder"
    yield "deep folders", folder(deep), "lies deeper than"
    yield "a pipe for an archive", _pipe, "neither a file nor a folder"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.nemo")
    return folder / "x.nemo"


def _configs() -> Iterator[Case]:
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    )
    merges = "a: &a {k: 1}\n" + "".join(f"b{n}: &b{n}\n  <<: [{', '.join(['*a'] * 50)}]\n" for n in range(3))
    texts = {
        "an object": ("x: !!python/object/apply:os.system ['touch canary']", "asks for an object of the kind"),
        "a module": ("x: !!python/module:antigravity", "asks for an object of the kind"),
        "another tag": ("x: !harm {}", "asks for an object of the kind"),
        "aliases that multiply": (laughs, "multiplies itself by aliases"),
        "merged keys": (merges, "a key that is no plain name"),
        "a list in itself": ("a: &a [*a]", "contains itself"),
        "many aliases": (f"a: &a 1\nb: [{', '.join(['*a'] * 500)}]", "more or deeper values"),
        "deep lists": ("a: " + "[" * 5000, "more or deeper values"),
        "long lists": ("a: [" + "1, " * 30_000, "more or deeper values"),
        "a key twice": ("num_layers: 4\nnum_layers: 5", "'num_layers' twice"),
        "a key that is a list": ("? [a, b]\n: 1", "no plain name"),
        "a number of 5,000 digits": (f"num_layers: {'9' * 5000}", "has a number of 5000 digits"),
        "1 MB": ("#" * 1_000_000, "a genuine one has at most"),
        "no mapping": ("- 1\n- 2", "no mapping of names"),
        "no text": ("\x00\x01", "no YAML that can be read"),
        "nothing": ("", "no mapping of names"),
    }
    for name, (text, refusal) in texts.items():
        yield name, packed({**good(), "model_config.yaml": text.encode()}), refusal
    yield "bytes that are no text", packed({**good(), "model_config.yaml": b"\xff\xfe\xfa"}), "no YAML that can be read"
    changes: dict[str, dict[str, object]] = {
        "a thousand million layers": {"num_layers": 10**9},
        "a layer of 10^15": {"hidden_size": 10**15},
        "a number that names the environment": {"hidden_size": "${oc.env:HOME}"},
        "layers less than none": {"num_layers": -4},
        "heads that are a list": {"num_attention_heads": [4]},
    }
    for name, change in changes.items():
        yield name, packed({**good(), "model_config.yaml": yaml.safe_dump(config(**change)).encode()}), "."


# --- files of tensors -------------------------------------------------------------------------------------------------


def with_flat(content: bytes) -> Callable[[Path], Path]:
    return packed({**settings(), _FLAT: content})


def rezipped(content: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """The same torch file with other bytes in its entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w", method) as target:
        for entry in source.namelist():
            target.writestr(entry, change(entry, source.read(entry)))
    return out.getvalue()


def with_list(data: bytes) -> bytes:
    """A torch file whose list of contents is this pickle."""
    return rezipped(torch_bytes({"x": torch.ones(4)}), lambda name, old: data if name.endswith("data.pkl") else old)


def tensor_list(size: str, stride: str, offset: int = 0, numbers: int = 4, kind: str = "FloatStorage") -> bytes:
    """The pickle of one tensor of the torch file above, with any numbers in it, in protocol 0."""
    storage = f"(S'storage'\nctorch\n{kind}\nS'0'\nS'cpu'\nI{numbers}\ntQ"
    rebuild = (
        f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{size}{stride}I00\nccollections\nOrderedDict\n(tRtR"
    )
    return f"(dS'embedding.word_embeddings.weight'\n{rebuild}s.".encode()


def sizes(*numbers: int) -> str:
    return "(" + "".join(f"I{number}\n" for number in numbers) + "t"


def _torch_files() -> Iterator[Case]:
    big = 1 << 20
    bombs = {
        "mappings": b"\x80\x02(" + b"}" * 8 * big + b"t.",
        "lists": b"\x80\x02(" + b"]" * 8 * big + b"t.",
        "tuples in tuples": b"\x80\x02N" + b"\x85" * 8 * big + b".",
        "memory": b"\x80\x04N" + b"\x94" * 8 * big + b".",
        "texts": b"\x80\x02(" + b"X\x04\x00\x00\x00abcd" * big + b"t.",
        "a list of 17 MB": b"\x80\x02N" + b"0N" * 9 * big + b".",
    }
    for name, data in bombs.items():
        yield f"a bomb of {name}", with_flat(with_list(data)), "lists more than|at most"
    calls: dict[str, Harm] = {
        "os.system": harm(),
        "eval": Harm(eval, f"open({CANARY!r}, 'w')"),
        "exec": Harm(exec, f"open({CANARY!r}, 'w')"),
        "getattr": Harm(getattr, "text", "upper"),
        "torch.load": Harm(torch.load, "model_weights.ckpt"),
        "open": Harm(open, CANARY, "w"),
        "bytearray": Harm(bytearray, 1 << 40),
    }
    weights = random_weights()
    for name, call in calls.items():
        yield f"a call of {name}", with_flat(torch_bytes({**weights, "x": call})), "nothing in it is run"
        yield f"{name} in a state", with_flat(torch_bytes({**weights, "x._extra_state": call})), "nothing in it is run"
    yield "a bare pickle", with_flat(pickle.dumps(harm())), "a bare pickle and no torch file"
    old = io.BytesIO()
    torch.save({"x": torch.ones(4)}, old, _use_new_zipfile_serialization=False)
    yield "the old format", with_flat(old.getvalue()), "before version 1.6"
    yield "the oldest format", with_flat(tar_bytes({"pickle": b"x", "storages": b"y"})), "oldest format"
    yield "noise for weights", with_flat(b"noise" * 100), "is no torch file"
    yield "empty weights", with_flat(b""), "is no torch file"
    lists: dict[str, tuple[bytes, str]] = {
        "a size beyond its bytes": (tensor_list(sizes(5), sizes(1)), "bytes that are not there"),
        "10^24 numbers": (tensor_list(sizes(10**12, 10**12), sizes(1, 1)), "bytes that are not there"),
        "10^24 times one number": (tensor_list(sizes(10**12, 10**12), sizes(0, 0)), "bytes that are not there"),
        "a step back": (tensor_list(sizes(2), sizes(-1)), "bytes that are not there"),
        "a start before the first": (tensor_list(sizes(2), sizes(1), -1), "bytes that are not there"),
        "a start behind the last": (tensor_list(sizes(2), sizes(1), 3), "bytes that are not there"),
        "a negative size": (tensor_list(sizes(-1), sizes(1)), "bytes that are not there"),
        "sizes without steps": (tensor_list(sizes(2, 2), sizes(1)), "bytes that are not there"),
        "a hundred axes": (tensor_list(sizes(*[1] * 100), sizes(*[1] * 100)), "bytes that are not there"),
        "sizes that are text": (tensor_list("(S'a'\nt", sizes(1)), "bytes that are not there"),
        "a storage of another size": (tensor_list(sizes(2), sizes(1), numbers=1 << 40), "bytes that are not there"),
        "a storage of another dtype": (
            tensor_list(sizes(2), sizes(1), kind="DoubleStorage"),
            "bytes that are not there",
        ),
        "a name for no dtype": (tensor_list(sizes(2), sizes(1), kind="Tensor"), "asks for 'torch.Tensor'"),
        "a number for a mapping": (b"I1\n.", "no mapping of names"),
        "an unknown instruction": (b"\x80\x02(i__builtin__\neval\n.", "its pickle uses INST"),
        "an extension": (b"\x80\x02\x82\x01.", "its pickle uses EXT1"),
        "an object to be called twice": (b"\x80\x02ccollections\nOrderedDict\n)R)R.", "calls something without a name"),
        "the state of a list": (b"\x80\x02]}b.", "sets the state"),
        "a mapping for a key": (b"\x80\x02}}Ns.", "keys that are no names"),
        "an empty stack": (b"\x80\x02s.", "damaged"),
        "a mark for a value": (b"\x80\x02(\x85.", "damaged"),
        "no end": (b"\x80\x02}", "damaged"),
        "too many values": (b"\x80\x02NN.", "does not come to an end"),
        "what was never kept": (b"\x80\x02h\x05.", "damaged"),
    }
    for name, (data, refusal) in lists.items():
        yield name, with_flat(with_list(data)), refusal
    one = torch.ones(200, 200)
    many = {f"decoder.layers.{layer}.mlp.linear_fc1.weight": one for layer in range(50)}
    yield "one tensor fifty times", with_flat(torch_bytes(many)), r"describes \d+ bytes of tensors and holds"
    yield "a checkpoint of a run", with_flat(torch_bytes({"state_dict": weights, "x": 1})), "a checkpoint of a run"
    yield "a number for a tensor", with_flat(torch_bytes({**weights, "x": 1})), "is no tensor"


def _zips() -> Iterator[Case]:
    wide = torch_bytes(dict(random_weights()))  # torch's own, with the end record for large files
    whole = rezipped(wide, lambda _, data: data)
    yield "compressed entries", with_flat(rezipped(whole, lambda _, data: data, zipfile.ZIP_DEFLATED)), "is compressed"
    big = rezipped(whole, lambda name, data: b"big" if name.endswith("byteorder") else data)
    yield "big-endian numbers", with_flat(big), "big-endian"
    yield "half a file", with_flat(whole[: len(whole) // 2]), "its end is missing"
    yield "bytes behind the end", with_flat(whole + b"PK"), "its end is missing|behind its end"
    end = whole.rfind(b"PK\x05\x06")
    claims = whole[:end] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60000, 60000, 1 << 30, 0, 0)
    yield "a list of a GiB", with_flat(claims), "claims to hold"
    end_of_wide = wide.rfind(b"PK\x05\x06")
    differing = wide[: end_of_wide + 10] + b"\1\0" + wide[end_of_wide + 12 :]
    yield "two ends that differ", with_flat(differing), "two ends that differ"
    yield (
        "60,000 entries in no space",
        with_flat(whole[:end] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60000, 60000, 100, 0, 0)),
        "damaged list of entries",
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("archive/data.pkl", b"")
        file.writestr("archive/constants.pkl", b"")
        file.writestr("archive/code/__torch__.py", b"raise SystemExit")
    yield "a program", with_flat(out.getvalue()), "a program"
    two = io.BytesIO()
    with zipfile.ZipFile(two, "w") as file:
        file.writestr("a/data.pkl", b"")
        file.writestr("b/data.pkl", b"")
    yield "two lists", with_flat(two.getvalue()), "has 2 lists of contents"
    names = [at for at in range(end) if whole.startswith(b"PK\x01\x02", at)]
    swapped = bytearray(whole)
    first, second = (names[index] for index in (0, 4))
    swapped[second + 42 : second + 46] = swapped[first + 42 : first + 46]
    yield "two entries in one place", with_flat(bytes(swapped)), "is not where its list of entries says"
    overlapping = bytearray(whole)
    overlapping[first + 20 : first + 28] = struct.pack("<LL", 9000, 9000)
    yield "entries that overlap", with_flat(bytes(overlapping)), "overlap"
    renamed = whole.replace(b"archive/version", b"archive/byteord", 1)
    yield "two names for one entry", with_flat(renamed), "is not where its list of entries says"
    far = bytearray(whole)
    far[first + 42 : first + 46] = struct.pack("<L", (1 << 32) - 2)
    yield "an entry outside", with_flat(bytes(far)), "wanted, and it has"


# --- distributed checkpoints ------------------------------------------------------------------------------------------


def _zarr() -> Iterator[Case]:
    files = {**settings(), **zarr_files(stacks(random_weights()))}
    folder = f"{_DIST}model.decoder.layers.mlp.linear_fc2.weight/"
    about = json.loads(files[f"{folder}.zarray"])

    def described(**changes: object) -> Callable[[Path], Path]:
        return packed({**files, f"{folder}.zarray": json.dumps({**about, **changes}).encode()})

    yield "a compressor", described(compressor={"id": "pickle"}), "has compressor"
    yield "a filter", described(filters=[{"id": "pickle"}]), "has filters"
    yield "Fortran's order", described(order="F"), "has order"
    yield "objects", described(dtype="|O"), "has the dtype"
    yield "big-endian numbers", described(dtype=">f4"), "has the dtype"
    yield "another version", described(zarr_format=3), "has zarr_format"
    yield "folders for chunks", described(dimension_separator="/"), "has dimension_separator"
    yield "10^15 chunks", described(shape=[10**5, 10**5, 10**5], chunks=[1, 1, 1]), "needs 10{15}"
    yield "one chunk of 10^15", described(shape=[4, 10**8, 10**7], chunks=[1, 10**8, 10**7]), "has 384 bytes and needs"
    yield "a shape that is no list", described(shape="abc"), "do not fit together"
    yield "a negative shape", described(shape=[4, -8, 12]), "do not fit together"
    yield "a shape with a true", described(shape=[True, 8, 12], chunks=[1, 8, 12]), "do not fit together"
    yield "chunks of nothing", described(chunks=[0, 0, 0]), "do not fit together"
    yield "a hundred axes", described(shape=[1] * 100, chunks=[1] * 100), "do not fit together"
    yield "a chunk too few", packed({name: files[name] for name in files if name != f"{folder}2.0.0"}), "has 3 chunks"
    yield "a chunk cut short", packed({**files, f"{folder}2.0.0": b"short"}), "has 5 bytes and needs"
    yield "a chunk elsewhere", packed({**files, f"{folder}evil": b"x"}), "has 5 chunks"
    yield "deep JSON", packed({**files, f"{folder}.zarray": b"[" * 16_000}), "no JSON"
    yield "long JSON", packed({**files, f"{folder}.zarray": b" " * 20_000}), "a genuine one has at most"
    yield "JSON of another kind", packed({**files, f"{folder}.zarray": b"[1]"}), "holds no JSON object"
    yield (
        "another backend",
        packed({**files, f"{_DIST}metadata.json": b'{"sharded_backend": "x"}'}),
        "sharded_backend 'x'",
    )


def _torch_dist() -> Iterator[Case]:
    files = {**settings(), **torch_dist_files(stacks(random_weights()))}
    place, name = f"{_DIST}.metadata", "model.decoder.layers.mlp.linear_fc2.weight"
    index = MetadataIndex(name, torch.Size((2, 0, 0)))

    def described(change: Callable[[Metadata], object]) -> Callable[[Path], Path]:
        metadata = pickle.loads(files[place])  # made above
        change(metadata)
        return packed({**files, place: pickle.dumps(metadata, 4)})

    def moved(**changes: object) -> Callable[[Path], Path]:
        def change(metadata: Metadata) -> None:
            metadata.storage_data[index] = replace(metadata.storage_data[index], **changes)

        return described(change)

    def resized(**changes: object) -> Callable[[Path], Path]:
        return described(
            lambda all_: all_.state_dict_metadata.update({name: replace(all_.state_dict_metadata[name], **changes)})
        )

    def first_box(**changes: object) -> Callable[[Path], Path]:
        def change(metadata: Metadata) -> None:
            about = metadata.state_dict_metadata[name]
            assert isinstance(about, TensorStorageMetadata)
            about.chunks[0] = replace(about.chunks[0], **changes)

        return described(change)

    yield "a call", packed({**files, place: pickle.dumps(harm(), 4)}), "nothing in it is run"
    yield "a call in it", described(lambda all_: setattr(all_, "planner_data", harm())), "nothing in it is run"
    yield "a call for a file", moved(relative_path=harm()), "nothing in it is run"
    yield "a file above", moved(relative_path="../model_config.yaml"), "only .distcp files hold tensors"
    yield "a file elsewhere", moved(relative_path="/etc/passwd.distcp"), "only .distcp files hold tensors"
    yield "another file", moved(relative_path="common.pt"), "only .distcp files hold tensors"
    yield "a file that is not there", moved(relative_path="__9_9.distcp"), "has no 'model_weights/__9_9.distcp'"
    yield "an offset outside", moved(offset=1 << 40), "lies outside of its file"
    yield "an offset before the first", moved(offset=-1), "lies outside of its file"
    yield "a length beyond the end", moved(length=1 << 40), "lies outside of its file"
    yield "a length that is text", moved(length="long"), "lies outside of its file"
    yield "pieces that overlap", moved(offset=10, relative_path="__0_1.distcp"), "overlap"
    yield "a transformed piece", moved(transform_descriptors=["zstd"]), "stored compressed"
    yield "a piece too few", described(lambda all_: all_.storage_data.pop(index)), "missing or cut short"
    yield "a gap", resized(size=torch.Size((5, 8, 12))), "do not cover it"
    yield "a huge tensor", resized(size=torch.Size((4, 1 << 40, 1 << 20))), "do not cover it"
    yield "no size", resized(size=None), "has no shape"
    yield "a piece in another's place", first_box(offsets=torch.Size((1, 0, 0))), "do not cover it"
    yield "a piece of another size", first_box(sizes=torch.Size((2, 8, 12))), "do not cover it"
    yield "a piece of fewer axes", first_box(sizes=torch.Size((1, 96))), "do not cover it"
    yield (
        "a flattened tensor",
        described(lambda all_: setattr(all_, "mcore_data", {name: {"nd_reformulated_orig_global_shape": (4, 8)}})),
        "is flattened",
    )
    yield "no tensors", described(lambda all_: setattr(all_, "state_dict_metadata", None)), "lists no tensors"
    yield "noise for a list", packed({**files, place: b"noise"}), "damaged|its pickle uses"
    yield "a bomb for a list", packed({**files, place: b"\x80\x04(" + b"}" * (7 << 20) + b"t."}), "lists more than"
    yield "a list of 9 MB", packed({**files, place: bytes(9 << 20)}), "a genuine one has at most"

    def with_piece(value: object) -> Callable[[Path], Path]:
        blob = torch_bytes(value)
        metadata = pickle.loads(files[place])  # made above
        metadata.storage_data[index] = _StorageInfo("__7_0.distcp", 0, len(blob))
        return packed({**files, place: pickle.dumps(metadata, 4), f"{_DIST}__7_0.distcp": blob})

    yield "a piece that calls", with_piece([torch.ones(1, 8, 12), harm()]), "nothing in it is run"
    yield "a piece of another shape", with_piece(torch.ones(8, 12)), r"where \.metadata says"
    yield "a piece of another dtype", with_piece(torch.ones(1, 8, 12).double()), r"where \.metadata says"
    yield "a piece that is a list", with_piece([torch.ones(1, 8, 12)]), "is no tensor"
