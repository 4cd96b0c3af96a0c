"""`dpolish convert` and NeMo's converters: what they write, and one line for what they cannot."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from dpolish.cli.convert import convert
from dpolish.errors import DpolishError
from dpolish.nemo.checkpoint import open_checkpoint
from tests.nemo.tiny_hugging_face import assert_same_tensors, save_tiny, tensors_of

SCRIPTS = Path(__file__).parents[2] / "examples" / "checkpoint_converters"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama_mha", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs the verb in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        ended = CliRunner().invoke(convert, list(arguments))
        if isinstance(ended.exception, DpolishError):
            return Ended(ended.exception.exit_code, f"error: {ended.exception}")
        if ended.exception is not None and not isinstance(ended.exception, SystemExit | click.ClickException):
            raise ended.exception
        return Ended(ended.exit_code, ended.output)

    return run


Command = Callable[..., Ended]


def test_there_and_back(command: Command, model: Path, tmp_path: Path) -> None:
    ended = command(str(model), "x.nemo", "--layout", "legacy", "--tp", "2", "--pp", "4", "--dtype", "bf16")
    assert ended.code == 0, ended.out
    assert ended.out.endswith("x.nemo: written\n")
    with open_checkpoint(tmp_path / "x.nemo") as checkpoint:
        source = checkpoint.source
        assert (source.format, source.naming, source.tensor_parallel, source.pipeline_parallel) == (
            "flat",
            "legacy",
            2,
            4,
        )
        assert {tensor.dtype for tensor in checkpoint.weights.values()} == {torch.bfloat16}
    assert command("x.nemo", "again", "--shard-size", "20kB").code == 0
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    narrow = {name: tensor.bfloat16() for name, tensor in tensors_of(model).items()}
    assert_same_tensors(tensors_of(tmp_path / "again"), narrow)


def test_nothing_is_overwritten_unasked(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.nemo").write_bytes(b"mine")
    ended = command(str(model), "x.nemo")
    assert ended.code == 2
    assert ended.out == "error: x.nemo: exists, and nothing is overwritten unasked: name another, or pass --overwrite"
    assert (tmp_path / "x.nemo").read_bytes() == b"mine"
    assert command(str(model), "x.nemo", "--overwrite").code == 0
    assert (tmp_path / "x.nemo").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["absent.nemo", "out"], "absent.nemo: cannot be read: No such file or directory"),
        (["./absent", "out.nemo"], "no such folder"),
        (["MODEL", "out"], "must be an archive: name it *.nemo"),
        (["MODEL", "out.nemo", "--layout", "flat"], "'flat' is not one of"),
        (["MODEL", "out.nemo", "--tp", "0"], "0 is not in the range"),
        (["MODEL", "out.nemo", "--tp", "3"], "--tp 3: the model has 8 attention heads; choose one of 1, 2, 4, 8"),
        (["MODEL", "out.nemo", "--shard-size", "big"], "'big' is no size; write 5GB or 500MB"),
        (["MODEL", "nowhere/out.nemo"], "there is no folder nowhere: make it first"),
        (["bad.nemo", "out"], "bad.nemo"),
    ],
)
def test_bad_input_leaves_2_and_nothing_else(
    command: Command, model: Path, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    (tmp_path / "bad.nemo").write_bytes(b"\x1f\x8b nothing")
    ended = command(*(str(model) if word == "MODEL" else word for word in arguments))
    assert ended.code == 2
    assert reason in ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["bad.nemo"]


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments], capture_output=True, text=True, check=False
    )


def test_the_tutorials_converters(model: Path, tmp_path: Path, command: Command) -> None:
    assert command(str(model), "legacy.nemo", "--layout", "legacy").code == 0
    folder = tmp_path / "model_checkpoint"
    folder.mkdir()
    subprocess.run(["tar", "-xf", "legacy.nemo", "-C", str(folder)], cwd=tmp_path, check=True)
    ended = script(
        "convert_nemo_gpt_to_mcore.py", "--in-folder", str(folder), "--out-file", str(tmp_path / "mcore_gpt.nemo")
    )
    assert ended.returncode == 0, ended.stderr
    ended = script(
        "convert_hf_llama_to_nemo.py", "--in-file", str(model), "--out-file", str(tmp_path / "llama.nemo"),
        "--precision", "32",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for name in ("mcore_gpt.nemo", "llama.nemo"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert checkpoint.source.format == "zarr"
            assert checkpoint.raw_config["mcore_gpt"] is True
        assert command(name, f"{name}.hf").code == 0
        assert_same_tensors(tensors_of(tmp_path / f"{name}.hf"), tensors_of(model))
    again = script("convert_hf_llama_to_nemo.py", "--in-file", str(model), "--out-file", str(tmp_path / "llama.nemo"))
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
