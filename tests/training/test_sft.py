"""SFT against the same computed another way: plain transformers on separate rows, in float64; and its invariants.

Tokens, trained positions, order of rows, losses, schedule and parameter groups are written out here once more.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import dpolish
from dpolish.api import RunResult
from dpolish.config.schema import SftConfig
from dpolish.errors import DataError
from tests import tiny
from tests.tiny import Row

BATCH, SEED, STEPS, STEPS_PER_EPOCH = 4, 1234, 5, 3
"""11 rows: the third step of an epoch has three."""
LR, MIN_LR, BETAS, DECAY = 2e-3, 2e-4, (0.9, 0.98), 0.1
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Files:
    """The data of one kind of row."""

    train: Path
    validation: Path


def prompt_response(count: int, seed: int) -> list[Row]:
    return [
        {"input": row["prompt"], "output": str(row["chosen_response"]).strip()} for row in tiny.rows(count, seed=seed)
    ]


def chats(count: int, seed: int) -> list[Row]:
    """One, two or three rounds; every second one begins with a system message."""
    rng = np.random.default_rng(seed)

    def say(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(rng.choice(tiny.WORDS, rng.integers(1, 7)))}

    made: list[Row] = []
    for number in range(count):
        turns = [say("system")] if number % 2 else []
        for _ in range(number % 3 + 1):
            turns += [say("user"), say("assistant")]
        made.append({"messages": turns})
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    folder = tmp_path_factory.mktemp("sft")
    return {
        name: Files(
            tiny.write_rows(folder / f"{name}.train.jsonl", make(11, 0)),
            tiny.write_rows(folder / f"{name}.validation.jsonl", make(5, 1)),
        )
        for name, make in (("prompt-response", prompt_response), ("chat", chats))
    }


def run(model: Path, files: Files, output: Path, *overrides: str) -> RunResult:
    composed = dpolish.compose(
        root=SftConfig,
        overrides=[
            "trainer.accelerator=cpu",
            "trainer.sft.max_epochs=2",
            f"trainer.sft.max_steps={STEPS}",
            "trainer.sft.val_check_interval=2",
            f"model.data.train_ds.global_batch_size={BATCH}",
            f"model.optim.lr={LR}",
            f"model.optim.weight_decay={DECAY}",
            f"model.optim.sched.min_lr={MIN_LR}",
            "model.optim.sched.warmup_steps=1",
            "model.optim.sched.constant_steps=0",
            *overrides,
        ],
        model=str(model),
        train=[str(files.train)],
        validation=[str(files.validation)],
        output=str(output),
        environ={},
    )
    return dpolish.train(composed, say=lambda _: None, sinks=lambda _: ())


# --- the oracle -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row as it is trained on."""

    tokens: Tensor
    labels: Tensor
    """The tokens, `IGNORED` where nothing is trained."""


def read(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [_chat(row["messages"], tokenizer) if "messages" in row else _answer(row, tokenizer) for row in rows]


def _answer(row: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    given, answer = row["input"].strip(" "), row["output"].strip(" ")
    prompt = tokenizer(given)["input_ids"]  # the blank before the answer is the answer's, as in NeMo-Aligner
    ids = [*tokenizer(f"{given} {answer}")["input_ids"], tokenizer.eos_token_id]
    begin = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
    return Tokens(torch.tensor(ids), torch.tensor([*[IGNORED] * begin, *ids[begin:]]))


def _chat(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """ChatML: its special tokens part the text, so that pieces can be tokenised one by one."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        head = tokenizer(f"<|im_start|>{message['role']}\n")["input_ids"]
        turn = tokenizer(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n")["input_ids"]
        begin = next((i for i, (a, b) in enumerate(zip(head, turn, strict=False)) if a != b), len(head))
        begin = begin if message["role"] == "assistant" else len(turn)
        ids += turn
        labels += [*[IGNORED] * begin, *turn[begin:]]
    return Tokens(torch.tensor(ids), torch.tensor(labels))


def batch_metrics(model: PreTrainedModel, rows: Sequence[Tokens], average: str) -> dict[str, Tensor]:
    """`loss` has a gradient."""
    sums, counts = [], []
    for row in rows:
        logits = model(row.tokens[None]).logits[0, :-1].double()
        sums.append(cross_entropy(logits, row.labels[1:], ignore_index=IGNORED, reduction="sum"))
        counts.append((row.labels[1:] != IGNORED).sum())
    nll, tokens = torch.stack(sums), torch.stack(counts)
    per_token = nll.sum() / tokens.sum()
    loss = per_token if average == "token" else (nll / tokens).mean()
    return {"loss": loss, "perplexity": per_token.exp(), "tokens": tokens.sum()}


def recomputed(
    folder: Path, files: Files, average: str
) -> tuple[list[tuple[int, str, dict[str, float]]], dict[str, Tensor]]:
    """(step, split, metrics) of every record, and the trained weights."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, validation = read(files.train, tokenizer), read(files.validation, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    groups = [
        {"params": [weight for weight in model.parameters() if weight.ndim == 2], "weight_decay": DECAY},
        {"params": [weight for weight in model.parameters() if weight.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=1e-8, foreach=False, fused=False)
    records: list[tuple[int, str, dict[str, float]]] = []
    for step in range(STEPS):
        epoch, index = divmod(step, STEPS_PER_EPOCH)
        order = np.random.default_rng([SEED, epoch]).permutation(11)
        found = batch_metrics(model, [train[row] for row in order[index * BATCH : (index + 1) * BATCH]], average)
        optimizer.zero_grad()
        found["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        cosine = 1 if step == 0 else (1 + math.cos(math.pi * (step - 1) / (STEPS - 1))) / 2
        rate = LR / 2 if step == 0 else MIN_LR + (LR - MIN_LR) * cosine
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        records.append((step + 1, "train", _numbers({**found, "grad_norm": norm, "lr": rate, "epoch": epoch + 1})))
        if (step + 1) % 2 == 0 or step + 1 == STEPS:
            with torch.no_grad():
                records.append((step + 1, "val", _numbers(batch_metrics(model, validation, average))))
    return records, {name: weight.float() for name, weight in model.state_dict().items()}


def _numbers(values: dict[str, Tensor | float]) -> dict[str, float]:
    return {name: torch.as_tensor(value).item() for name, value in values.items()}


# --- the comparison ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prompt-response", "chat"])
@pytest.mark.parametrize("average", ["token", "example"])
def test_metrics_and_weights_are_those_of_plain_pytorch(
    setup: tiny.Setup, files: dict[str, Files], tmp_path: Path, kind: str, average: str
) -> None:
    result = run(setup.model, files[kind], tmp_path / "run", f"model.loss_average={average}")
    records, trained = recomputed(setup.model, files[kind], average)
    lines = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in lines] == [(step, split) for step, split, _ in records]
    for line, (step, split, expected) in zip(lines, records, strict=True):
        for metric, value in expected.items():
            assert line[metric] == pytest.approx(value, rel=1e-5), f"step {step} {split} {metric}"
    assert records[-2][2]["loss"] < 0.95 * records[0][2]["loss"], "nothing was learned: it would prove little"
    assert tiny.largest_difference(tiny.weights(result.model), trained) < 1e-4


SAME = {
    "padded": ["model.data.packing=false"],
    "padded, two": ["model.data.packing=false", "model.data.train_ds.micro_batch_size=2"],
    "each alone": ["model.data.tokens_per_micro_batch=1"],
    "two or so": ["model.data.tokens_per_micro_batch=60"],
    "all at once": ["model.data.tokens_per_micro_batch=100000"],
    "checkpointing": ["model.activations_checkpoint_granularity=full"],
    "dense attention": ["model.attention_backend=dense"],
}


def test_packing_never_changes_what_is_learned(setup: tiny.Setup, files: dict[str, Files], tmp_path: Path) -> None:
    base = run(setup.model, files["chat"], tmp_path / "base")
    for name, overrides in SAME.items():
        other = run(setup.model, files["chat"], tmp_path / name, *overrides)
        for one, two in zip(base.records, other.records, strict=True):
            for metric in ("loss", "perplexity", "tokens"):
                assert two.metrics[metric] == pytest.approx(one.metrics[metric], rel=1e-5), name
        assert tiny.largest_difference(tiny.weights(base.model), tiny.weights(other.model)) < 1e-4, name


def test_the_model_of_sft_goes_straight_into_dpo(setup: tiny.Setup, files: dict[str, Files], tmp_path: Path) -> None:
    tuned = run(setup.model, files["prompt-response"], tmp_path / "sft").model
    composed = dpolish.compose(
        overrides=setup.overrides, model=str(tuned), train=[str(setup.train)], output=str(tmp_path / "dpo"), environ={}
    )
    polished = dpolish.train(composed, say=lambda _: None, sinks=lambda _: ())
    assert polished.num_reference_scored == 11
    assert tiny.largest_difference(tiny.weights(polished.model), tiny.weights(tuned)) > 0


def test_rows_of_another_kind_are_refused_by_name(setup: tiny.Setup, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1.*chosen_response"):
        run(setup.model, Files(setup.train, setup.validation), tmp_path / "run")
