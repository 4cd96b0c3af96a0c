"""Groups of ranks: sizes that multiply to the world, strategies by size of the model, and refusals with numbers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpolish.errors import ConfigError
from dpolish.layout import RankLayout, make_layout

BIG, SMALL = 70 * 10**9, 10**8
H100 = 80 * 10**9


@given(
    nodes=st.integers(1, 64),
    devices=st.sampled_from([1, 2, 4, 8]),
    tensor=st.sampled_from([1, 2, 4, 8]),
    strategy=st.sampled_from(["auto", "full", "hybrid", "replicate"]),
    parameters=st.sampled_from([SMALL, 8 * 10**9, BIG]),
)
def test_the_groups_make_up_the_world(nodes: int, devices: int, tensor: int, strategy: str, parameters: int) -> None:
    if devices % tensor:
        with pytest.raises(ConfigError, match="tensor_model_parallel_size"):
            make_layout(nodes, devices, tensor, strategy, parameters, H100)  # type: ignore[arg-type]
        return
    made = make_layout(nodes, devices, tensor, strategy, parameters, H100)  # type: ignore[arg-type]
    assert made.replicate * made.shard * made.tensor == made.world == nodes * devices
    assert made.data == made.replicate * made.shard


@pytest.mark.parametrize(("strategy", "replicate", "shard"), [("full", 1, 16), ("hybrid", 4, 4), ("replicate", 16, 1)])
def test_strategies(strategy: str, replicate: int, shard: int) -> None:
    made = make_layout(4, 8, 2, strategy, BIG, H100)  # type: ignore[arg-type]
    assert (made.replicate, made.shard) == (replicate, shard)


def test_auto_shards_no_more_than_it_must() -> None:
    assert make_layout(4, 8, 1, "auto", SMALL, H100).shard == 1
    assert make_layout(4, 8, 1, "auto", 8 * 10**9, H100).shard == 8, "within a node, where links are fast"
    assert make_layout(4, 8, 1, "auto", BIG, H100).shard == 32


def test_a_size_that_does_not_divide_the_ranks_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"size=3 does not divide the 4 ranks of trainer\.num_nodes=1 × ") as caught:
        make_layout(1, 4, 3, "auto", SMALL, H100)
    for size in re.findall(r"\d+", str(caught.value).rpartition(": ")[2]):
        make_layout(1, 4, int(size), "auto", SMALL, H100)


def test_a_group_beyond_its_node_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"size=4 does not divide trainer\.devices=2: .* must lie in one node"):
        make_layout(4, 2, 4, "auto", SMALL, H100)


def test_ranks_that_share_sequences_lie_among_the_shards_of_a_node() -> None:
    made = make_layout(2, 8, 2, "hybrid", BIG, H100, context=4)
    assert (made.replicate, made.shard, made.context, made.tensor, made.data) == (2, 4, 4, 2, 2)
    assert make_layout(1, 4, 1, "replicate", SMALL, H100, context=2).shard == 2, "a copy for each sequence"
    with pytest.raises(ConfigError, match=r"context_parallel_size=3 does not divide the 8 ranks"):
        make_layout(2, 8, 1, "auto", SMALL, H100, context=3)
    with pytest.raises(ConfigError, match=r"context_parallel_size=8 does not divide the 4 ranks"):
        make_layout(2, 8, 2, "auto", SMALL, H100, context=8)


def test_in_words() -> None:
    assert str(RankLayout()) == "1 rank"
    assert str(RankLayout(devices=2)) == "2 ranks = 2 copies × 1 FSDP shards × 1 tensor-parallel"
    assert (
        str(RankLayout(num_nodes=2, devices=8, tensor=2, shard=8))
        == "2 nodes × 8 ranks = 1 copy × 8 FSDP shards × 2 tensor-parallel"
    )
