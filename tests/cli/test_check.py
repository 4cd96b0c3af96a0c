"""`dpolish check`: exit codes, one JSON document, no torch without a model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpolish.cli.main import main
from dpolish.data.formats import FORMATS, SFT_FORMATS
from tests.data.check.corpus import assistant, pair, rows, user


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a clean file, one with warnings, one with errors."""
    (tmp_path / "clean.jsonl").write_bytes(rows(pair("one"), pair("two")))
    (tmp_path / "warned.jsonl").write_bytes(rows(pair("one"), pair("two", "x", "x")))
    (tmp_path / "broken.jsonl").write_bytes(rows(pair("one")) + b"{\n")
    (tmp_path / "valid.jsonl").write_bytes(rows(pair("one", "x", "y")))
    (tmp_path / "sft.jsonl").write_bytes(rows({"messages": [user("a"), assistant("b")]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["check", *arguments])
    said = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["clean.jsonl"], 0),
        (["clean.jsonl", "--strict"], 0),
        (["warned.jsonl"], 0),
        (["warned.jsonl", "--strict"], 2),
        (["broken.jsonl"], 2),
        (["clean.jsonl", "--validation", "valid.jsonl"], 0),
        (["clean.jsonl", "--validation", "valid.jsonl", "--strict"], 2),
        (["clean.jsonl", "warned.jsonl", "--strict"], 2),
        (["none.jsonl"], 2),
        (["sft.jsonl"], 0),
        (["sft.jsonl", "--sft"], 0),
        (["sft.jsonl", "--task", "dpo"], 2),
        (["clean.jsonl", "--format", "native"], 0),
    ],
)
def test_exit_codes(data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    ended, out, err = run(capsys, *arguments)
    assert ended == code, out
    assert err == ""


@pytest.mark.parametrize("name", ["clean", "warned", "broken", "none"])
def test_json_is_one_document_and_nothing_else(data: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = run(capsys, f"{name}.jsonl", "--json", "--validation", "valid.jsonl")
    document = json.loads(out)
    assert err == ""
    assert code == (2 if document["verdict"] == "errors" else 0)
    assert [file["path"] for file in document["files"]] == [f"{name}.jsonl", "valid.jsonl"]


def test_fix(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "warned.jsonl", "--fix", "mended.jsonl")
    assert code == 0
    assert "mended.jsonl: 1 pair written, 1 left out" in out
    assert (data / "mended.jsonl").read_bytes().count(b"\n") == 1
    code, _, err = run(capsys, "warned.jsonl", "--fix", "mended.jsonl")
    assert (code, "mended.jsonl exists" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no file"),
        (["clean.jsonl", "--show", "1"], "--show needs --model"),
        (["clean.jsonl", "--seq-length", "5"], "--seq-length needs --model"),
        (["clean.jsonl", "--append-eod"], "--append-eod needs --model"),
        (["clean.jsonl", "--show", "1", "--json", "--model", "x"], "exclude each other"),
        (["clean.jsonl", "--sft", "--task", "dpo"], "exclude each other"),
        (["clean.jsonl", "--format", "nativ"], "Did you mean 'native'?"),
        (["clean.jsonl", "--model", "./none"], "no such folder"),
        (["clean.jsonl", "--pairs", "some"], "best_vs_worst"),
        (["clean.jsonl", "--sft", "--prompt-template", "{question}"], "does not stand in it"),
    ],
)
def test_options_that_cannot_be(
    data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_formats_lists_every_shape_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", "--formats"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for registry in (FORMATS, SFT_FORMATS):
        for shape in registry.values():
            assert f"  {shape.name}\n" in out
            assert shape.example
            assert f"    {json.dumps(shape.example, ensure_ascii=False)}\n" in out


def test_model_and_show(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.data.small_tokenizers import byte_level

    byte_level().save_pretrained(data / "model")
    (data / "rows.jsonl").write_bytes(rows(pair([user("Who?")], assistant("A painter."), assistant("I refuse."))))
    code, out, _ = run(capsys, "rows.jsonl", "--model", "model", "--show", "1", "--seq-length", "5")
    assert code == 2
    assert "⟦A painter.<|im_end|>" in out
    assert "warning over-long: 1" in out
    assert "Lengths in tokens" not in out
    code, out, _ = run(capsys, "rows.jsonl", "--model", "model", "--json")
    assert (code, json.loads(out)["model"]["ends"]) == (0, ["<|im_end|>"])


def test_without_a_model_torch_is_not_loaded(data: Path) -> None:
    code = (
        "import sys\nfrom dpolish.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    root = str(Path(__file__).parents[2])
    for arguments in (["warned.jsonl"], ["clean.jsonl", "--json"], ["--formats"]):
        subprocess.run(
            [sys.executable, "-c", code, "check", *arguments], check=True, env={"PYTHONPATH": root}, capture_output=True
        )
