"""Bytes by hand, and laws that hold for every layout."""

from dataclasses import replace

import pytest

from dpolish.layout import RankLayout
from dpolish.planning.memory import Work
from dpolish.planning.traffic import Collective, ranks_within_node, seconds_of, traffic_of
from tests.planning.sizes import SMALL

WORK = Work("cuda", "bf16", tokens=512, scored_share=0.5)
PARAMETERS = 1_402_100
OUTSIDE = 2 * 1000 * 100 + 100


def traffic(layout: RankLayout, work: Work = WORK, micro_batches: int = 3) -> dict[str, Collective]:
    found = traffic_of(SMALL, layout, work, micro_batches, tokens=500)
    return {f"{one.kind}, {one.purpose}": one for one in found}


def test_one_rank_sends_nothing() -> None:
    assert traffic(RankLayout()) == {}


def test_shards_by_hand() -> None:
    made = traffic(RankLayout(devices=4, shard=4))
    gather = made["all-gather, weights, forward and backward"]
    assert (gather.ranks, gather.calls) == (4, 3 * 21)
    assert gather.sent == pytest.approx(3 * (2 * (PARAMETERS - OUTSIDE) + OUTSIDE) * 2 * 3 / 4)
    reduction = made["reduce-scatter, gradients"]
    assert (reduction.calls, reduction.sent) == (3 * 11, pytest.approx(3 * PARAMETERS * 4 * 3 / 4))
    assert made["all-reduce, metrics and gradient norm"].calls == 1
    assert len(made) == 3


def test_copies_reduce_once_a_step_whatever_the_micro_batches() -> None:
    layout = RankLayout(devices=4, shard=1)
    one, many = (traffic(layout, micro_batches=count) for count in (1, 9))
    assert one == many
    between = one["all-reduce, gradients between copies"]
    assert (between.ranks, between.sent) == (4, pytest.approx(2 * PARAMETERS * 4 * 3 / 4))


def test_hybrid_shards_reduce_their_own_part_between_copies() -> None:
    made = traffic(RankLayout(num_nodes=2, devices=4, shard=4))
    assert made["all-reduce, gradients between copies"].sent == pytest.approx(2 * PARAMETERS / 4 * 4 / 2)
    assert made["reduce-scatter, gradients"].ranks == 4


def test_split_matrices_by_hand() -> None:
    made = traffic(RankLayout(devices=2, tensor=2))
    hidden = 3 * 500 * 100 * 2  # all micro-batches
    activations = made["all-reduce, activations"]
    assert activations.calls == 3 * (4 * 10 + 1)  # two a layer and direction, and the embeddings
    assert activations.sent == pytest.approx((4 * 10 + 1) * hidden)  # twice, one half each
    assert made["all-reduce, hidden states of the head"].sent == pytest.approx(hidden / 2)


def test_sequence_parallelism_sends_as_much_in_other_kinds() -> None:
    layout = RankLayout(devices=2, tensor=2)
    made = traffic(layout, replace(WORK, sequence_parallel=True))
    gathers, scatters = made["all-gather, activations"], made["reduce-scatter, activations"]
    assert (gathers.calls, scatters.calls) == (3 * 41, 3 * 40)
    plain = traffic(layout)["all-reduce, activations"].sent
    embeddings = made["all-reduce, embeddings"].sent
    final_norm = 3 * 500 * 100 * 2 / 2
    assert gathers.sent + scatters.sent + embeddings - final_norm == pytest.approx(plain)


def test_recomputation_repeats_the_exchange_of_the_forward_pass() -> None:
    layout = RankLayout(devices=2, tensor=2)
    plain, again = (traffic(layout, replace(WORK, recompute=recompute)) for recompute in (False, True))
    name = "all-reduce, activations"
    assert again[name].calls - plain[name].calls == 3 * 10


def test_shared_sequences_by_hand() -> None:
    made = traffic(RankLayout(devices=2, shard=2, context=2))
    exchange = made["all-to-all, queries, keys, values, output"]
    assert (exchange.ranks, exchange.calls) == (2, 3 * 10 * 4 * 2)
    own = 3 * 10 * 2 * 250 * (2 * 100 + 2 * 50) * 2  # micro-batches, layers, directions, tokens, widths, bytes
    assert exchange.sent == pytest.approx(own / 2)


@pytest.mark.parametrize(
    ("layout", "group", "inside"),
    [
        (RankLayout(num_nodes=4, devices=8, tensor=8, shard=4), "tensor", 8),
        (RankLayout(num_nodes=4, devices=8, tensor=8, shard=4), "shard", 1),
        (RankLayout(num_nodes=4, devices=8, tensor=2, shard=16), "shard", 4),
        (RankLayout(num_nodes=4, devices=8, shard=8), "shard", 8),
        (RankLayout(num_nodes=4, devices=8, shard=8), "replicate", 1),
        (RankLayout(num_nodes=4, devices=8, shard=1), "replicate", 8),
        (RankLayout(num_nodes=4, devices=8, shard=8), "world", 8),
        (RankLayout(num_nodes=4, devices=8, shard=8, context=2), "context", 2),
    ],
)
def test_how_many_of_a_group_share_a_node(layout: RankLayout, group: str, inside: int) -> None:
    assert ranks_within_node(layout, group) == inside  # type: ignore[arg-type]


def test_a_group_within_a_node_uses_its_links_and_one_beyond_it_all_its_network_cards() -> None:
    one = Collective("all-gather", "weights", "shard", 8, 1, 800.0)
    assert seconds_of(one, RankLayout(devices=8, shard=8), 400.0, 10.0) == 2.0
    beyond = replace(one, ranks=16)
    assert seconds_of(beyond, RankLayout(num_nodes=2, devices=8, shard=16), 400.0, 10.0) == 10.0
    assert seconds_of(beyond, RankLayout(num_nodes=2, devices=8, shard=16), 40.0, 10.0) == 20.0
