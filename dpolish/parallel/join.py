"""Joining the other ranks of a job, and leaving them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from dpolish.errors import RunError
from dpolish.parallel.watch import watched
from dpolish.world import World

_MEETING_SECONDS = 600.0
"""How long ranks wait for each other at the start: nodes begin at different times."""


@contextmanager
def joined(world: World, device: torch.device, timeout: float) -> Iterator[None]:
    """A process group of all ranks, under watch, for the body; nothing where there is one rank.

    `timeout` is in seconds: the watch's. Collectives themselves wait as long as one rank may read or write.
    """
    if world.size == 1:
        yield
        return
    _prepare_environment(world, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.origin == "torchrun" and os.getppid() != int(os.environ.get("DPOLISH_LAUNCHER", os.getppid())):
        raise RunError("the process that started the ranks has died")
    meeting = rendezvous("env://", world.rank, world.size, timeout=timedelta(seconds=_MEETING_SECONDS))
    store, rank, size = next(iter(meeting))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(days=2),
        device_id=device if device.type == "cuda" else None,
    )
    with watched(world.rank, world.size, timeout):
        yield
    dist.destroy_process_group()


def _prepare_environment(world: World, device: torch.device) -> None:
    """What torch reads: where to meet, and how many threads each of several ranks on one machine may have."""
    if world.master is not None:
        os.environ.update(MASTER_ADDR=world.master[0], MASTER_PORT=str(world.master[1]))
    if world.num_nodes == 1 and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))


def least(value: int) -> int:
    """The smallest value of any rank: what all of them can rely on."""
    if not dist.is_initialized():
        return value
    box = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(box, op=dist.ReduceOp.MIN)
    return int(box)


def rank_that_differs(value: bytes) -> int | None:
    """The first rank whose value is not rank 0's; None where all have the same."""
    if not dist.is_initialized():
        return None
    values: list[bytes | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return next((rank for rank, other in enumerate(values) if other != values[0]), None)
