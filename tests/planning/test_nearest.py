"""The nearest layout that fits: nothing where all is well, little where little is wrong, and it does fit when typed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpolish.config import compose
from dpolish.planning import DataFacts, Machine, make_plan
from dpolish.planning.gpus import GPUS
from dpolish.planning.memory import Work
from dpolish.planning.nearest import Choice, nearest
from tests.planning.sizes import LLAMA_70B, SMALL

H100 = GPUS["h100-80gb"].memory
WORK = Work("cuda", "bf16", tokens=8192)
ROWS = DataFacts(rows=10_000, tokens=10_000 * 3072, padded_tokens=10_000 * 4096, largest=6144)


def asked(num_nodes: int = 8, tensor: int = 8, work: Work = WORK) -> Choice:
    return Choice(num_nodes, tensor, 1, "auto", work)


def test_what_fits_stays() -> None:
    machine = Machine("cuda", H100, 8, 8)
    found = nearest(asked(work=replace(WORK, tokens=2048)), LLAMA_70B, machine, largest=1000)
    assert found == asked(work=replace(WORK, tokens=2048))
    assert found.overrides(found) == ()


def test_a_70b_model_on_eight_nodes_needs_one_change() -> None:
    machine = Machine("cuda", H100, 8, 8)
    start = asked(work=replace(WORK, tokens=8192, scored_share=2 / 3))
    assert start.total(LLAMA_70B, machine) > H100
    found = nearest(start, LLAMA_70B, machine, largest=8192)
    assert found is not None
    assert found.overrides(start) == ("model.sequence_parallel=true",)
    assert found.total(LLAMA_70B, machine) <= H100


def test_a_70b_model_on_one_node_takes_more_nodes() -> None:
    machine = Machine("cuda", H100, 1, 8)
    found = nearest(asked(num_nodes=1), LLAMA_70B, machine, largest=4096)
    assert found is not None
    assert found.num_nodes == 2
    assert found.total(LLAMA_70B, machine) <= H100


def test_where_no_number_of_nodes_helps_there_is_none() -> None:
    assert nearest(asked(), LLAMA_70B, Machine("cuda", 2 * 10**9, 8, 8), largest=4096) is None


def test_a_size_that_cannot_be_gives_way_to_the_nearest_that_can() -> None:
    machine = Machine("cuda", H100, 1, 8)
    found = nearest(asked(num_nodes=1, tensor=3, work=WORK), SMALL, machine, largest=100)
    assert found is not None
    assert found.overrides(asked(1, 3)) == ("model.tensor_model_parallel_size=4",)


def test_sequences_that_cannot_be_shared_are_not() -> None:
    machine = Machine("cuda", H100, 1, 8)
    start = replace(asked(num_nodes=1, tensor=2), context=3)
    found = nearest(start, SMALL, machine, largest=100)
    assert found is not None
    assert found.overrides(start) == ("model.context_parallel_size=1",)


@given(
    nodes=st.sampled_from([1, 2, 4, 16]),
    tensor=st.sampled_from([1, 2, 3, 5, 8]),
    tokens=st.integers(6144, 20_000),
    memory=st.sampled_from(sorted({gpu.memory for gpu in GPUS.values()})),
)
def test_what_is_named_fits_when_it_is_typed(nodes: int, tensor: int, tokens: int, memory: int) -> None:
    machine = Machine("cuda", memory, nodes, 8)
    start = asked(nodes, tensor, replace(WORK, tokens=tokens, scored_share=ROWS.scored_share))
    found = nearest(start, LLAMA_70B, machine, ROWS.largest)
    if found is None:
        return
    typed = [
        f"trainer.num_nodes={nodes}",
        "trainer.devices=8",
        f"model.data.tokens_per_micro_batch={tokens}",
        f"model.tensor_model_parallel_size={tensor}",
        *found.overrides(start),
    ]
    config = compose(None, typed, environ={}).config
    there = replace(machine, num_nodes=config.trainer.num_nodes)
    plan = make_plan(config, LLAMA_70B, ROWS, None, there, 4096)
    assert plan.memory.total <= memory


@pytest.mark.parametrize("name", sorted(GPUS))
def test_gpus_are_what_their_names_say(name: str) -> None:
    gpu = GPUS[name]
    size = int(name.rpartition("-")[2].removesuffix("gb"))
    assert 0.9 < gpu.memory / (size * 2**30) <= 1.0
    assert gpu.within_node > gpu.between_nodes
