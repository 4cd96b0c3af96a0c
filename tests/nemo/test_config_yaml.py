"""Plain YAML as OmegaConf reads it, and nothing else; refusals are in test_hostile."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dpolish.errors import ModelError
from dpolish.nemo.archive import LooseFile, Span
from dpolish.nemo.config_yaml import parallel_size, read_config


def read(text: str, folder: Path) -> dict[str, object]:
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return read_config(Span(LooseFile(str(folder / "c.yaml")), "c.yaml", 0, (folder / "c.yaml").stat().st_size))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="ascii"))
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner), max_leaves=20)


@settings(max_examples=40)
@given(st.dictionaries(st.text("abcdef", min_size=1), TREES))
def test_what_omegaconf_writes(tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]) -> None:
    value = {"x": 1, **value}
    folder = tmp_path_factory.mktemp("yaml")
    text = yaml.safe_dump(value)
    try:
        text = OmegaConf.to_yaml(value)
    except Exception:
        assert read(text, folder) == value
        return
    assert read(text, folder) == OmegaConf.to_container(OmegaConf.create(text))


def test_numbers_dates_and_interpolations(tmp_path: Path) -> None:
    text = "a: 1e-5\nb: 1.0e-05\nc: 2001-01-01\nd: ${.a}\ne: ${oc.env:HOME}\nf: -2E+3\ng: 1e5x\nh: 0x10\n"
    assert read(text, tmp_path) == {
        "a": 1e-5, "b": 1e-5, "c": "2001-01-01", "d": "${.a}", "e": "${oc.env:HOME}",
        "f": -2000.0, "g": "1e5x", "h": 16,
    }  # fmt: skip


def test_aliases_are_plain_values(tmp_path: Path) -> None:
    assert read("a: &x [1, 2]\nb: *x\nc: {d: *x}\n", tmp_path) == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_a_fault_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"c\.yaml:3: names 'a' twice"):
        read("a: 1\nb: 2\na: 3\n", tmp_path)


def test_parallel_sizes() -> None:
    assert parallel_size({"x": 4}, "x") == 4
    for value in (None, 0, -1, "2", [2]):
        assert parallel_size({"x": value}, "x") == 1
    assert parallel_size({}, "x") == 1
