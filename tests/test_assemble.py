"""Which device a rank takes, and whether all ranks have read the same rows."""

from dataclasses import dataclass, replace

import pytest
import torch

from dpolish import assemble
from dpolish.assemble import data_facts, require_same_data
from dpolish.config.compose import compose
from dpolish.config.schema import DpoConfig
from dpolish.data.ingest import Ingested
from dpolish.data.kinds import PairCounts
from dpolish.data.pack import Packing
from dpolish.data.summary import DataSummary
from dpolish.errors import ConfigError
from dpolish.machine import choose_device
from dpolish.tensors import Example
from dpolish.world import ALONE, World
from tests.examples import alike_examples, random_examples


def rank(number: int, size: int) -> World:
    return World(number, size, number, size, origin="torchrun")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return int(request.param)


@pytest.mark.parametrize("gpus", [0, 1], indirect=True)
@pytest.mark.parametrize("accelerator", ["auto", "gpu"])
@pytest.mark.parametrize("number", [0, 1])
def test_every_rank_refuses_a_list_with_a_gpu_that_is_not_there(gpus: int, accelerator: str, number: int) -> None:
    missing = rf"trainer\.devices=\[0, 1\]: there is no GPU {gpus} here, torch sees {gpus}.*trainer\.accelerator=cpu"
    with pytest.raises(ConfigError, match=missing):
        choose_device(accelerator, (0, 1), rank(number, 2))


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.parametrize("number", [0, 3])
def test_every_rank_refuses_more_ranks_than_gpus(gpus: int, number: int) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.devices=4: there is no GPU {gpus} here, torch sees {gpus}"):
        choose_device("auto", 4, rank(number, 4))


@pytest.mark.parametrize("gpus", [4], indirect=True)
def test_a_list_names_gpus(gpus: int) -> None:
    assert [choose_device("auto", (1, 3), rank(number, 2)) for number in (0, 1)] == [
        torch.device("cuda", 1),
        torch.device("cuda", gpus - 1),
    ]
    assert choose_device("gpu", 2, rank(1, 2)) == torch.device("cuda", 1)


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_without_gpus_ranks_are_cpus() -> None:
    assert choose_device("auto", (0,), ALONE).type == "cpu"
    assert choose_device("auto", 2, rank(1, 2)).type == "cpu"
    assert choose_device("cpu", (0, 1), rank(1, 2)).type == "cpu"
    with pytest.raises(ConfigError, match="sees no such device here"):
        choose_device("gpu", (0,), ALONE)


@pytest.mark.parametrize("gpus", [1], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_slurm_shows_each_task_its_own_gpu() -> None:
    assert choose_device("auto", 2, World(1, 2, 1, 2, origin="srun")) == torch.device("cuda", 0)


@dataclass(frozen=True, slots=True)
class Rows:
    """What is asked of a split."""

    examples: tuple[Example, ...]


def test_rows_differ_also_in_what_is_scored_and_in_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    monkeypatch.setattr(assemble, "rank_that_differs", seen.append)
    example = max(random_examples(4), key=lambda row: len(row.completions[0].tokens))
    first, *others = example.completions
    later = replace(first, score_from=first.score_from + 1)
    variants = [example, replace(example, rewards=(0.25, 0.5)), replace(example, completions=(later, *others))]
    for variant in [*variants, example]:
        require_same_data(Rows((variant,)), None)  # type: ignore[arg-type]
    assert len(set(seen)) == 3
    assert seen[0] == seen[3]


@pytest.mark.parametrize("override", ["model.prefix_sharing=off", "model.data.packing=false"])
def test_nothing_is_alike_where_nothing_is_shared(override: str) -> None:
    examples = alike_examples(8)
    part = Ingested(tuple(examples), (), (), PairCounts.of, DataSummary((), {}, {}, (), PairCounts.of(examples)))
    asked = ["model.global_batch_size=8"]
    shared = data_facts(part, compose(root=DpoConfig, overrides=asked, model="m", train=["t"]).config)
    assert shared.packed_tokens == Packing(True, 10_000, 1).tokens(examples) < shared.tokens
    alone = data_facts(part, compose(root=DpoConfig, overrides=[*asked, override], model="m", train=["t"]).config)
    assert alone == replace(shared, alike=0)
