"""YAML files are read as OmegaConf reads them, and every fault in one names its line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.config.composing import composed, config, faults


def test_a_file_is_read_as_omegaconf_reads_it(yaml_file: Callable[[str], Path]) -> None:
    text = (
        "model: {optim: {lr: 9e-6}, prefix_sharing: off, data: {format: None}, dpo: {reference_cache: off}}\n"
        "exp_manager: {name: 1e3, explicit_log_dir: '${oc.env:HOME}'}\n"
        "hydra: {run: {dir: 'outputs/${now:%Y}'}}\n"
    )
    result = composed(file=yaml_file(text)).config
    assert isinstance(result.model.optim.lr, float)
    assert (result.model.optim.lr, result.model.prefix_sharing, result.model.data.format) == (9e-6, "off", "None")
    assert (result.model.dpo.reference_cache, result.exp_manager.name) == ("off", "1e3")
    assert result.exp_manager.explicit_log_dir


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("model:\n  seed: 1\n  seed: 2\n", 3, "duplicate key seed"),
        ("model:\n\tseed: 1\n", 2, "cannot start any token"),
        ("model:\n  seed: [1\n", 3, "not valid YAML"),
        ("model:\n  sed: 1\n", 2, "unknown key 'model.sed'. Did you mean 'model.seed'?"),
        ("model: {seed: 1}\nmodle:\n  seed: 1\n", 2, "unknown key 'modle'. Did you mean 'model'?"),
        ("model:\n  seed: x\n", 2, "model.seed: expected a whole number, got 'x'"),
        ("model:\n  optim: 3\n", 2, "a section"),
        ("defaults: [gpt_dpo, _self_, mine]\n", 1, "'mine' is another file"),
        ("base: &b {seed: x}\nmodel:\n  <<: *b\n", 1, "unknown key 'base'"),
        ("model:\n  seed: ???\n", 2, "missing"),
    ],
)
def test_a_fault_in_a_file_names_its_line(yaml_file: Callable[[str], Path], text: str, line: int, words: str) -> None:
    path = yaml_file(text)
    fault = faults(file=path)[0]
    assert fault.startswith(f"{path}:{line}: ")
    assert words in fault


@pytest.mark.parametrize("text", ["- a\n", "just words\n", "a: ${b\n"])
def test_a_file_that_is_no_configuration(yaml_file: Callable[[str], Path], text: str) -> None:
    path = yaml_file(text)
    assert faults(file=path)[0].startswith(f"{path}: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    for name in ("missing.yaml", "latin.yaml", "."):
        assert "cannot be read" in faults(file=tmp_path / name)[0]


def test_an_empty_file_is_the_defaults(yaml_file: Callable[[str], Path]) -> None:
    assert composed(file=yaml_file("# nothing\n")).config == config()


def test_the_command_line_wins_over_the_file(yaml_file: Callable[[str], Path]) -> None:
    path = yaml_file("model:\n  seed: 1\n  micro_batch_size: 2\n")
    result = composed("model.seed=5", file=path)
    assert (result.config.model.seed, result.config.model.micro_batch_size) == (5, 2)
    assert (
        "exists already" in faults("+model.encoder_seq_length=4", file=yaml_file("model: {encoder_seq_length: 3}"))[0]
    )
    assert composed("~model.mcore_gpt", file=yaml_file("model: {mcore_gpt: null}")).ignored == ()
