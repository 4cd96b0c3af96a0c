"""A tiny model folder with its tokenizer, a few preference rows, and a run through the Python face."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import dpolish
from dpolish.api import RunResult
from dpolish.config.compose import Composed
from tests.data.small_tokenizers import byte_level

Row = Mapping[str, object]

WORDS = ("which", "year", "was", "the", "painter", "famous", "signed", "refuse", "answer", "helpful", "1215", "of", "a")
LONGEST = 128
"""Positions of the model."""


def save_model(folder: Path, **fields: object) -> Path:
    """A two-layer Llama, its weights large enough for attention to matter, and a byte-level tokenizer with ChatML."""
    tokenizer = byte_level()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LONGEST}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**{"vocab_size": len(tokenizer), **sizes, **heads, **special, **fields})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> list[Row]:
    """Preference rows in the native format; some with ground-truth rewards, one whose prompt and answer merge."""
    rng = np.random.default_rng(seed)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))

    made: list[Row] = []
    for number in range(count):
        answers = {"chosen_response": f" {words(9)}.", "rejected_response": f" {words(9)}!"}
        rewards = {"chosen_reward": 0.25 * number, "rejected_reward": -0.5} if number % 3 == 0 else {}
        made.append({"prompt": words(12), **answers, **rewards})
    made[0] = {**made[0], "prompt": f"{made[0]['prompt']} "}  # a blank that the answer's own blank joins
    return made


def write_rows(path: Path, content: Sequence[Row]) -> Path:
    """The rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class Setup:
    """A model and data to run on, and the overrides of every run: 11 rows in batches of 4, so that a batch is short."""

    model: Path
    train: Path
    validation: Path
    overrides: tuple[str, ...] = field(
        default=(
            "trainer.accelerator=cpu",
            "trainer.dpo.max_epochs=2",
            "trainer.dpo.max_steps=5",
            "trainer.dpo.val_check_interval=2",
            "model.global_batch_size=4",
            "model.optim.lr=2e-3",
            "model.optim.sched.min_lr=2e-4",
            "model.optim.sched.warmup_steps=1",
            "model.optim.sched.constant_steps=0",
        )
    )

    def composed(self, output: Path, *overrides: str) -> Composed:
        """The configuration of one run; later overrides win."""
        return dpolish.compose(
            overrides=[*self.overrides, *overrides],
            model=str(self.model),
            train=[str(self.train)],
            validation=[str(self.validation)],
            output=str(output),
            environ={},
        )

    def run(self, output: Path, *overrides: str) -> RunResult:
        """Train, and say nothing."""
        return dpolish.train(self.composed(output, *overrides), say=lambda _: None, sinks=lambda _: ())

    def arguments(self, output: Path) -> list[str]:
        """The same run for the command line."""
        files = ["--train", str(self.train), "--validation", str(self.validation)]
        return ["--model", str(self.model), *files, "--output", str(output), *self.overrides]


def metrics(directory: Path, split: str = "train") -> list[dict[str, float]]:
    """The records of one split, from metrics.jsonl."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record.pop("split") == split]


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model folder by name."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Relative L2 of the worst parameter."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).double().norm() / theirs[name].double().norm()) for name in theirs)
