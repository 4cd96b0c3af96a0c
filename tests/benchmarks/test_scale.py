"""The simulation by hand, the imbalance of real rows, and (slow) memory as it is planned and as it is taken."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scale_memory
from benchmarks.regimes import generate
from benchmarks.scale import CONVERSATIONS, IMBALANCE_LIMIT, IMBALANCE_RANKS
from benchmarks.scale_balance import BATCHES, balance, batches, imbalance, loads
from benchmarks.scale_model import Network, Simulated, Speed, exchange_seconds, simulate
from dpolish.layout import RankLayout
from dpolish.planning.memory import Work
from dpolish.planning.traffic import Collective
from tests.planning.sizes import SMALL

SIZES = [pair.num_tokens for pair in generate(CONVERSATIONS, 300, 1000)]
SPEED = Speed(1e-3, Work("cpu", "32", tokens=2048))


def test_imbalance_is_what_the_fullest_makes_the_others_wait() -> None:
    assert imbalance([10, 10, 10]) == 0
    assert imbalance([30, 10, 20]) == pytest.approx(0.5)
    assert imbalance([4, 0]) == 1


def test_every_row_is_dealt() -> None:
    for rows in batches(SIZES, 64, 10):
        assert len(rows) == 64
        assert sum(loads(rows, 8)) == sum(rows)
    epoch = [size for rows in batches(SIZES, 60, 5) for size in rows]
    assert sorted(epoch) == sorted(SIZES), "no row comes again before all were there"


@pytest.mark.parametrize("batch", BATCHES)
def test_conversations_are_dealt_evenly(batch: int) -> None:
    made = balance(SIZES, batch, IMBALANCE_RANKS)
    assert made.average <= made.worst < IMBALANCE_LIMIT < made.by_rows


def test_a_collective_takes_its_messages_and_its_bytes() -> None:
    one = Collective("all-gather", "weights", "shard", ranks=8, calls=10, sent=1e9)
    layout = RankLayout(devices=8, shard=8)
    network = Network(per_node=8, latency=1e-3, within_node=1e9, between_nodes=1e8)
    assert exchange_seconds(one, layout, network) == pytest.approx(10 * 3 * 1e-3 + 1.0)
    apart = RankLayout(num_nodes=8, devices=1, shard=8)
    assert exchange_seconds(one, apart, network) == pytest.approx(10 * 3 * 1e-3 + 10.0)


def simulated(ranks: int, batch: int, network: Network | None = None) -> Simulated:
    return simulate(SMALL, SIZES, ranks, batch, SPEED, network or Network(), drawn=5)


def test_a_free_network_costs_imbalance_alone() -> None:
    made = simulated(64, 1024, Network(latency=0.0, within_node=1e30, between_nodes=1e30))
    assert made.exchange_seconds == pytest.approx(0, abs=1e-12)
    assert made.efficiency == pytest.approx(1 / (1 + made.imbalance), rel=1e-3)
    assert made.tokens_per_second == pytest.approx(made.efficiency * 64 / SPEED.seconds_per_token)


def test_slower_networks_cost_more() -> None:
    usual = simulated(16, 256)
    for worse in (Network(latency=1.0), Network(within_node=1e3), Network(between_nodes=1e3)):
        assert simulated(16, 256, worse).step_seconds > usual.step_seconds
    within = replace(Network(), between_nodes=1.0)
    assert simulated(8, 128, within) == simulated(8, 128), "eight ranks are one node"


def test_ranks_without_rows_gain_nothing() -> None:
    assert simulated(512, 64).compute_seconds == simulated(64, 64).compute_seconds


@pytest.mark.slow
@pytest.mark.parametrize("size", list(scale_memory.SIZES))
def test_runs_take_the_memory_that_the_plan_says(size: str) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("resident memory is measured through Linux's /proc")
    measured = scale_memory.measure(size)
    assert measured.ratio == pytest.approx(1.0, abs=0.2)
