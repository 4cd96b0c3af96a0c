"""What is wrong with an archive's tokenizer is found with little memory, before transformers is loaded."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dpolish.errors import ModelError
from dpolish.nemo.checking import require_readable
from tests.nemo.archives import Files, config, flat_files, pack, settings
from tests.nemo.hostile import good
from tests.nemo.small_weights import ROWS, random_weights
from tests.nemo.test_hostile import ALLOWED_GROWTH, ROOT
from tests.nemo.test_tokenizers_reading import plain

NAME = "0123_tokenizer.model"
SPM: dict[str, object] = {"library": "sentencepiece", "model": f"nemo:{NAME}"}
GPT2: dict[str, object] = {
    "library": "megatron",
    "type": "GPT2BPETokenizer",
    "vocab_file": "nemo:v.json",
    "merge_file": "nemo:m.txt",
}


def many_rows() -> Files:
    """Weights of a model that has rows for every token of `plain`."""
    weights = random_weights()
    wide = {name: tensor.repeat(32, 1) for name, tensor in weights.items() if tensor.shape[0] == ROWS}
    return flat_files({**weights, **wide}, "mcore-te")


def normalizer(trie: bytes) -> bytes:
    """A model's field with compiled rules: 3 (normalizer_spec) within which 2 (precompiled_charsmap)."""
    rules = _field(2, struct.pack("<I", len(trie)) + trie + b"x\0")
    return _field(3, rules)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + _varint(value >> 7) if value > 127 else bytes([value])


PIECE = _field(1, _field(1, b"______")).replace(b"______", b"%06d")
ARTIFACTS: dict[str, tuple[dict[str, object], dict[str, bytes], str]] = {
    "noise": (SPM, {NAME: b"noise"}, "not a sentencepiece model"),
    "a length of 2^60": (SPM, {NAME: b"\x0a" + _varint(1 << 60)}, "cut short"),
    "400,000 pieces": (SPM, {NAME: b"".join(PIECE % number for number in range(400_000))}, "more than 300,000 pieces"),
    "33 MB in one piece": (SPM, {NAME: _field(1, bytes(33 << 20))}, "may have|too long|null"),
    "35 MB": (SPM, {NAME: bytes(35 << 20)}, "a genuine one has at most"),
    "a trie of 8 MB": (SPM, {NAME: plain() + normalizer(struct.pack("<I", 1025) * (2 << 20))}, "more than 1 MiB"),
    "a deep list": (GPT2, {"v.json": b"[" * 5_000_000, "m.txt": b""}, "no JSON object"),
    "a long list": (GPT2, {"v.json": b"[" + b"{}," * 2_000_000, "m.txt": b""}, "no JSON object"),
    "a million tokens": (
        GPT2,
        {"v.json": json.dumps({f"{n:x}": n for n in range(500_000)}).encode(), "m.txt": b""},
        "more than 160,000 tokens",
    ),
    "pairs that make nothing": (GPT2, {"v.json": b'{"a": 0, "b": 1}', "m.txt": b"#\na b"}, "do not fit"),
    "nine million pairs": (GPT2, {"v.json": b'{"a": 0}', "m.txt": b"a b\n" * 9_000_000}, "has at most|160,000 lines"),
    "a name that climbs": ({**SPM, "model": "nemo:../../etc/passwd"}, {}, "has no artifact"),
    "a name from the root": ({**SPM, "model": "/etc/passwd"}, {}, "has no artifact"),
    "a device": ({**SPM, "model": "/dev/zero"}, {}, "has no artifact"),
    "the configuration": ({**SPM, "model": "nemo:model_config.yaml"}, {}, "has no artifact"),
    "a name alone": ({"library": "huggingface", "type": "\x1b[31mred"}, {}, r"only the name of one: '\\x1b\[31mred'"),
    "a library that commands": ({"library": "\x1b[2J\x07"}, {}, r"tokenizer.library '\\x1b\[2J\\x07'"),
}
SCRIPT = """
import json, sys
from pathlib import Path
from dpolish.errors import ModelError
from dpolish.nemo.checking import require_readable
from tests.nemo.read_guarded import megabytes, memory
for line in sys.stdin:
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    try:
        require_readable(Path(line.rstrip(chr(10))))
        message = ""
    except ModelError as error:
        message = str(error)
    print(json.dumps([message, megabytes(memory("VmHWM") - before), "transformers" in sys.modules]))
"""


def test_hostile_tokenizers(tmp_path: Path) -> None:
    paths = []
    for number, (block, artifacts, _) in enumerate(ARTIFACTS.values()):
        (tmp_path / str(number)).mkdir()
        files = {**many_rows(), **settings(tokenizer=block), **artifacts}
        paths.append(pack(files, tmp_path / str(number) / "x.nemo"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input="".join(f"{path}\n" for path in paths), capture_output=True, text=True,
        cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # a panic of the library is told there
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for name, path, (message, grown, loaded) in zip(ARTIFACTS, paths, results, strict=True):
        refusal = ARTIFACTS[name][2]
        with pytest.raises(ModelError, match=refusal):
            raise ModelError(message)
        assert message.startswith(f"{path}: "), name
        assert message.count(str(path)) == 1, name
        assert message.isprintable(), f"{name}: {message!a}"
        assert not loaded, name
        assert grown < ALLOWED_GROWTH + 10, f"{name}: {grown} MB"


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    path = pack({**good(), **settings(tokenizer=SPM), NAME: plain()}, tmp_path / "x.nemo")
    with pytest.raises(ModelError, match="800 tokens, and the model's embedding only 32 rows"):
        require_readable(path)


def test_a_tokenizer_that_is_not_read_is_not_checked(tmp_path: Path) -> None:
    path = pack({**good(), **settings(tokenizer=SPM), NAME: b"noise"}, tmp_path / "x.nemo")
    require_readable(path, reads_tokenizer=False)
    with pytest.raises(ModelError):
        require_readable(path)


def test_an_artifact_of_a_very_old_archive(tmp_path: Path) -> None:
    """Its configuration has the path that the file had where the model was trained."""
    files = {**settings(tokenizer={**SPM, "model": "/home/someone/spm.model"}), **many_rows()}
    require_readable(pack({**files, "spm.model": plain()}, tmp_path / "x.nemo"))
    named = settings(tokenizer={**SPM, "model": "nemo:elsewhere/spm.model"})
    path = pack({**files, **named, "spm.model": plain()}, tmp_path / "y.nemo")
    with pytest.raises(ModelError, match=r"has no artifact 'elsewhere/spm\.model'"):
        require_readable(path)


def test_folders_that_are_named_one_too_high_or_too_low(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model_weights"
    weights.mkdir(parents=True)
    (tmp_path / "model" / "model_config.yaml").write_text(json.dumps(config()))
    (weights / "metadata.json").write_text("{}")
    with pytest.raises(ModelError, match="has its files in the folder 'model'; name that folder"):
        require_readable(tmp_path)
    with pytest.raises(ModelError, match=r"is a part of a checkpoint; name the folder that it lies in, .*model"):
        require_readable(weights)
    (tmp_path / "model").rename(tmp_path / "iter_0000007")
    (tmp_path / "iter_0000007" / "model_config.yaml").rename(tmp_path / "iter_0000007" / "run_config.yaml")
    with pytest.raises(ModelError, match="has its files in the folder 'iter_0000007'; name that folder"):
        require_readable(tmp_path)


def test_files_of_ranks_count_more_than_the_configuration(tmp_path: Path) -> None:
    files = {**settings(), **flat_files(random_weights(), "mcore-te", tp=2)}  # the sizes are not in it
    require_readable(pack(files, tmp_path / "x.nemo"), reads_tokenizer=False)
