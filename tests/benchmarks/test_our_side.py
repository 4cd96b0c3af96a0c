"""Our sides of the comparisons train on the token ids they are given, and lose what plain transformers loses."""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import our_dpo, our_sft
from benchmarks.ceiling import seen
from benchmarks.plain import plain_loss
from benchmarks.sides import SideResult
from dpolish.tensors import Layout, Node
from tests import tiny

BATCH = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, 200, count).tolist()


def answer(side: ModuleType, model: Path, rows: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> SideResult:
    rows_path, answer_path = folder / "rows.json", folder / "answer.json"
    rows_path.write_text(json.dumps(rows))
    options = ["--model", model, "--rows", rows_path, "--batch", BATCH, "--answer", answer_path]
    monkeypatch.setattr(sys, "argv", [side.__name__, *map(str, options)])
    side.main()
    return SideResult(**json.loads(answer_path.read_text()))


def test_sft(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # every third row trains two turns, with tokens between and behind that it does not
    trained = [[0, 0, 1, 1, 0, 0, 1, 0], [0] * 5 + [1] * 20, [0, 1, 1]]
    rows = [(ids(len(mask), seed), mask) for seed, mask in enumerate(trained * 2)]
    result = answer(our_sft, model, rows, tmp_path, monkeypatch)
    assert result.step_rows == [[0, 1, 2], [3, 4, 5]]
    assert result.losses[0] == pytest.approx(plain_loss(model, rows[:BATCH]), rel=1e-6)
    assert result.losses[1] == pytest.approx(plain_loss(model, rows[BATCH:]), rel=1e-2)  # one small update later
    assert result.needed_flops[0] == result.needed_flops[1] > 0
    assert sum(result.causes.values()) == pytest.approx(1.0, abs=0.05)


def test_dpo(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(ids(6, seed), ids(4, seed + 10), ids(9, seed + 20)) for seed in range(2 * BATCH)]
    result = answer(our_dpo, model, rows, tmp_path, monkeypatch)
    assert result.losses[0] == pytest.approx(np.log(2))
    assert result.reference_seconds > 0
    assert len(result.step_seconds) == 2


def test_needs_count_what_a_token_sees_once() -> None:
    def causal(length: int) -> int:
        return sum(range(1, length + 1))

    assert seen(Layout(1, 7, (Node(0, 7, None),))) == causal(7)
    pair = Layout(1, 12, (Node(0, 5, None), Node(5, 3, 0), Node(8, 4, 0)))
    assert seen(pair) == causal(5 + 3) + causal(5 + 4) - causal(5)
    deep = Layout(1, 14, (*pair.nodes, Node(12, 2, 2)))
    assert seen(deep) == seen(pair) + causal(5 + 4 + 2) - causal(5 + 4)
