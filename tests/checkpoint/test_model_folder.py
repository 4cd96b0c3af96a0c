"""The saved model: complete or absent, what transformers loads, in the configuration that it came with."""

import stat
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dpolish.checkpoint.model_folder import save_model
from dpolish.errors import RunError
from tests import models, one_rank


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(("<pad>", "<s>", "</s>", "a", "b"))}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), eos_token="</s>")


@pytest.mark.parametrize("name", ["gpt2", "smollm", "starcoder2"])
def test_what_is_saved_is_what_was_trained(tmp_path: Path, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    models.build(name).save_pretrained(tmp_path / "source")
    loaded = one_rank.load(tmp_path / "source")
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.01)
    save_model(loaded.model, tokenizer, loaded.silenced, tmp_path / "model")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for (path, want), got in zip(loaded.model.named_parameters(), reloaded.parameters(), strict=True):
        assert torch.equal(want, got), path
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tokenizer.get_vocab()
    source = AutoConfig.from_pretrained(tmp_path / "source").to_diff_dict()
    assert AutoConfig.from_pretrained(tmp_path / "model").to_diff_dict() == source  # dropout is back where it was
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "source"]


def test_others_may_read_the_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    save_model(models.build("llama"), tokenizer, {}, tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode), file.name


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("I/O error: disk full")])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    model = models.build("llama")
    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    with pytest.raises(RunError, match=r"model.*(No space left|disk full).*[Ff]ree space"):
        save_model(model, tokenizer, {}, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
