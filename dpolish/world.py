"""Which rank this process is: what torchrun or srun put into the environment, checked against the configuration.

Loads without torch.
"""

import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dpolish.config.compose import Composed
from dpolish.config.schema import RunConfig
from dpolish.errors import ConfigError

_INTERACTIVE_STEP = 0xFFFFFFFA
"""The step in which `salloc` gives a shell: it is no task of a job."""


@dataclass(frozen=True, slots=True)
class World:
    """One process among those of a job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Ranks on this node."""
    master: tuple[str, int] | None = None
    """Where ranks meet: rank 0's address and port. None where the environment has it (torchrun), or there is one."""
    origin: Literal["torchrun", "srun", "alone"] = "alone"

    @property
    def num_nodes(self) -> int:
        """Nodes with so many ranks each."""
        return max(self.size // self.local_size, 1)


ALONE = World()
"""The only rank of its job."""


def ranks_to_start(composed: Composed[RunConfig], environ: Mapping[str, str]) -> int:
    """How many ranks the configuration asks this process to start on this machine; 0 where it is one, or the only one.

    Raises ConfigError where ranks on several nodes are asked for: they are not started from one.
    """
    world = _found(environ)
    nodes, devices = _asked(composed, world)
    if world.origin != "alone" or nodes * devices == 1:
        return 0
    if nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}, but this process was started alone on one node. Start it with srun (dpolish "
            "slurm writes the job), or with torchrun on every node, or set trainer.num_nodes=1"
        )
    return devices


def world_of(composed: Composed[RunConfig], environ: Mapping[str, str]) -> World:
    """This process's place among the ranks that were started.

    Raises ConfigError where they are not those that `trainer.num_nodes × trainer.devices` asks for.
    """
    world = _found(environ)
    nodes, devices = _asked(composed, world)
    if (nodes, devices) == (world.num_nodes, world.local_size):
        return world
    if count := ranks_to_start(composed, environ):
        raise ConfigError(
            f"trainer.devices={count} asks for {count} ranks, and this process is one. Start it with the dpolish "
            "command, which starts them, or with torchrun, or set trainer.devices=1"
        )
    raise ConfigError(
        f"trainer.num_nodes={nodes} × trainer.devices={devices} asks for {nodes * devices} ranks, but {world.origin} "
        f"started {world.size}: {world.num_nodes} nodes × {world.local_size} ({_said(world)}). "
        f"Set trainer.num_nodes={world.num_nodes} trainer.devices={world.local_size}, or change how it is started"
    )


def _said(world: World) -> str:
    if world.origin == "torchrun":
        return f"WORLD_SIZE={world.size}, LOCAL_WORLD_SIZE={world.local_size}"
    return f"SLURM_STEP_NUM_TASKS={world.size}, {world.local_size} of them on this node"


def _asked(composed: Composed[RunConfig], world: World) -> tuple[int, int]:
    """(nodes, devices on each) as configured, or as they are where the configuration leaves it to the environment."""
    trainer = composed.config.trainer
    if not composed.chosen("trainer.devices") and not composed.chosen("trainer.num_nodes") and world.origin != "alone":
        return world.num_nodes, world.local_size
    if isinstance(trainer.devices, tuple):
        return trainer.num_nodes, len(trainer.devices)
    if trainer.devices in ("auto", -1):
        if world.origin != "alone":
            return trainer.num_nodes, world.local_size
        return trainer.num_nodes, _device_count(trainer.accelerator)
    return trainer.num_nodes, int(trainer.devices)


def _device_count(accelerator: str) -> int:
    """Every device there is: GPUs where they are meant and there are any, else one CPU."""
    if accelerator not in ("auto", "gpu"):
        return 1
    import torch

    return max(torch.cuda.device_count(), 1)


def _found(environ: Mapping[str, str]) -> World:
    if "RANK" in environ and "WORLD_SIZE" in environ:
        size = _integer(environ, "WORLD_SIZE")
        on_node = _integer(environ, "LOCAL_WORLD_SIZE", size)
        if on_node == 0 or size % on_node:
            raise ConfigError(
                f"torchrun started {on_node} of {size} ranks on this node; every node needs as many: use the same "
                "--nproc-per-node"
            )
        return World(
            rank=_integer(environ, "RANK"),
            size=size,
            local_rank=_integer(environ, "LOCAL_RANK", 0 if size == 1 else None),
            local_size=on_node,
            origin="torchrun",
        )
    step = environ.get("SLURM_STEP_ID", "")
    if "SLURM_PROCID" in environ and step.isdigit() and int(step) != _INTERACTIVE_STEP:
        size = _integer(environ, "SLURM_STEP_NUM_TASKS")
        if size > 1:
            return World(
                rank=_integer(environ, "SLURM_PROCID"),
                size=size,
                local_rank=_integer(environ, "SLURM_LOCALID"),
                local_size=_tasks_per_node(environ),
                master=(_master_host(environ), _master_port(environ)),
                origin="srun",
            )
    return World()


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit():
        raise ConfigError(
            f"the environment has {name}={text!r}, a whole number was expected; start with torchrun or srun"
        )
    return int(text)


def _tasks_per_node(environ: Mapping[str, str]) -> int:
    """From `2(x3)`: the same on every node, or a ConfigError."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "1"))
    counts = {int(count) for count in re.findall(r"(\d+)(?:\(x\d+\))?", text)}
    if len(counts) != 1:
        raise ConfigError(f"srun started {text} tasks on the nodes; every node needs as many: use --ntasks-per-node")
    return counts.pop()


def _master_host(environ: Mapping[str, str]) -> str:
    """Where rank 0 runs: MASTER_ADDR, else the first node, by its name or by the address that Slurm has for it."""
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"]
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    name = first_host(nodes)
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return _address_in_slurm(name) or environ.get("SLURM_LAUNCH_NODE_IPADDR", name)
    return name


def first_host(nodes: str) -> str:
    """The first of Slurm's compressed list of nodes.

    >>> first_host("gpu[007-010,12],login1"), first_host("alone"), first_host("a-[3,5]-x")
    ('gpu007', 'alone', 'a-3-x')
    """
    found = re.match(r"([^\[,]*)(?:\[(\d+)[^\]]*\])?([^\[,]*)", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def _address_in_slurm(name: str) -> str | None:
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        return None
    shown = subprocess.run([scontrol, "show", "node", name, "--oneliner"], capture_output=True, text=True, check=False)
    found = re.search(r"NodeAddr=(\S+)", shown.stdout)
    return found[1] if found else None


def _master_port(environ: Mapping[str, str]) -> int:
    if "MASTER_PORT" in environ:
        return _integer(environ, "MASTER_PORT")
    job, step = _integer(environ, "SLURM_JOB_ID", 0), _integer(environ, "SLURM_STEP_ID", 0)
    return 20_000 + (job * 7 + step) % 40_000
