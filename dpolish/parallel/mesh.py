"""This rank among the others, and the collectives that the rest of the code needs.

One rank is a mesh too: every collective is then the identity.
"""

from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dpolish.layout import RankLayout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mesh:
    """The ranks of a run, laid out as replicate × shard × tensor."""

    layout: RankLayout
    device: torch.device
    rank: int = 0
    groups: DeviceMesh | None = None
    """Dimensions replicate, shard, tensor; None on one rank."""
    context: DeviceMesh | None = None
    """The ranks that share every sequence with this one, itself included; None where it has all of each."""
    experts: DeviceMesh | None = None
    """Dimensions replicate, shard, expert: the same ranks as experts see them; None where none are of their own."""

    @staticmethod
    def joined(layout: RankLayout, device: torch.device) -> "Mesh":
        """The mesh of the process group that was joined; every rank calls it together."""
        if layout.world == 1:
            return Mesh(layout, device)
        shape = (layout.replicate, layout.shard, layout.tensor)
        groups = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard", "tensor"))
        context = None
        if layout.context > 1:
            finer = (layout.replicate, layout.shard // layout.context, layout.context, layout.tensor)
            names = ("replicate", "rows", "context", "tensor")
            context = init_device_mesh(device.type, finer, mesh_dim_names=names)["context"]
        experts = None
        if layout.expert > 1:
            coarser = (layout.replicate, layout.shard // layout.expert, layout.expert)
            experts = init_device_mesh(device.type, coarser, mesh_dim_names=("replicate", "shard", "expert"))
        return Mesh(layout, device, dist.get_rank(), groups, context, experts)

    @property
    def size(self) -> int:
        """All ranks."""
        return self.layout.world

    @property
    def first(self) -> bool:
        """True on the rank that writes and speaks for all."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """How many parts a global batch is dealt to."""
        return self.layout.data

    @property
    def data_rank(self) -> int:
        """Which part is this rank's: ranks that share weight matrices, or sequences, have the same."""
        return self.rank // (self.layout.tensor * self.layout.context)

    @property
    def speaks(self) -> bool:
        """True on one of the ranks that have the same rows: what all of them know is counted once."""
        return self.rank % (self.layout.tensor * self.layout.context) == 0

    @property
    def tensor(self) -> DeviceMesh | None:
        """The ranks that share weight matrices with this one, itself included; None where it has all of each."""
        return self.groups["tensor"] if self.groups is not None and self.layout.tensor > 1 else None

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum over all ranks, on the device it came from."""
        if self.size == 1:
            return values
        total = values.to(self.device)
        dist.all_reduce(total)
        return total.to(values.device)

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast(list[T], values)
