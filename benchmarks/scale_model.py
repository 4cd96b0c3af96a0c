"""Ranks that are not here: a step's time from measured speed, the dealing of rows, and bytes over a modelled network.

    step = tokens of the fullest rank × seconds a token  +  seconds of the collectives

A collective among g ranks that sends b bytes from each takes ⌈log₂ g⌉ α + b / β: as many messages in a row as recursive
doubling needs, and the bytes of a ring. Between nodes β is a network card's, of which a group has one for each of its
ranks in a node. Nothing is taken to overlap, so that what overlaps in truth is gained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scale_balance import batches, imbalance, loads
from dpolish.facts import ModelFacts
from dpolish.layout import RankLayout
from dpolish.planning.memory import Work
from dpolish.planning.traffic import Collective, seconds_of, traffic_of


@dataclass(frozen=True, slots=True)
class Network:
    """What connects ranks; assumptions, all of them printed."""

    per_node: int = 8
    """Ranks of a node."""
    latency: float = 20e-6
    """α: seconds until a message arrives, however short."""
    within_node: float = 100e9
    """β: bytes a second from one rank to another of its node."""
    between_nodes: float = 12.5e9
    """β of a rank's share of the network."""

    def __str__(self) -> str:
        return (
            f"{self.per_node} ranks a node; α {self.latency * 1e6:g} µs; β {self.within_node / 1e9:g} GB/s within a "
            f"node, {self.between_nodes / 1e9:g} GB/s for each rank between nodes; nothing overlaps"
        )


@dataclass(frozen=True, slots=True)
class Speed:
    """How one rank computes."""

    seconds_per_token: float
    work: Work
    """Its largest micro-batch, and its precision."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """One step on so many ranks."""

    ranks: int
    layout: str
    batch: int
    tokens: float
    """Of a mean global batch."""
    imbalance: float
    compute_seconds: float
    sent_bytes: float
    exchange_seconds: float
    efficiency: float
    """Tokens a second of each rank, over those of one rank alone."""

    @property
    def step_seconds(self) -> float:
        """All of it."""
        return self.compute_seconds + self.exchange_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks."""
        return self.tokens / self.step_seconds


def simulate(
    model: ModelFacts,
    sizes: Sequence[int],
    ranks: int,
    batch: int,
    speed: Speed,
    network: Network,
    drawn: int = 20,
) -> Simulated:
    """A mean step of FSDP, sharded within a node, over `drawn` global batches of rows of these sizes."""
    devices = min(ranks, network.per_node)
    layout = RankLayout(num_nodes=ranks // devices, devices=devices, shard=devices)
    dealt = [loads(rows, ranks) for rows in batches(sizes, batch, drawn)]
    fullest = sum(max(parts) for parts in dealt) / drawn
    tokens = sum(sum(parts) for parts in dealt) / drawn
    passes = math.ceil(fullest / speed.work.tokens)
    collectives = traffic_of(model, layout, speed.work, passes, tokens / ranks / passes)
    compute = fullest * speed.seconds_per_token
    exchange = sum(exchange_seconds(one, layout, network) for one in collectives)
    return Simulated(
        ranks=ranks,
        layout=str(layout),
        batch=batch,
        tokens=tokens,
        imbalance=sum(imbalance(parts) for parts in dealt) / drawn,
        compute_seconds=compute,
        sent_bytes=sum(one.sent for one in collectives),
        exchange_seconds=exchange,
        efficiency=tokens * speed.seconds_per_token / ranks / (compute + exchange),
    )


def exchange_seconds(one: Collective, layout: RankLayout, network: Network) -> float:
    """α and β of all calls of one kind."""
    messages = one.calls * math.ceil(math.log2(one.ranks))
    return messages * network.latency + seconds_of(one, layout, network.within_node, network.between_nodes)
