"""What this rank computes on, and how much memory it may take."""

import torch

from dpolish.errors import ConfigError
from dpolish.facts import host_memory
from dpolish.parallel.join import least
from dpolish.world import ALONE, World


def choose_device(accelerator: str, devices: object = 1, world: World = ALONE) -> torch.device:
    """This rank's device of `trainer.accelerator`; auto is a CUDA GPU where there is one, else the CPU.

    A list in `trainer.devices` names the GPUs' indices. Every rank judges all devices of its node, so that none is left
    waiting for one that refuses. Raises ConfigError.
    """
    named = isinstance(devices, tuple)
    indices = tuple(devices) if isinstance(devices, tuple) else tuple(range(max(world.local_size, 1)))
    count = torch.cuda.device_count()
    if accelerator in ("auto", "gpu"):
        if count == 1 and world.origin == "srun":
            return torch.device("cuda", 0)  # Slurm shows each task its own GPU only
        absent = [index for index in indices if index >= count]
        if absent and (count > 0 or (named and indices != (0,))):  # 0 is also the only CPU
            raise ConfigError(
                f"trainer.devices={list(indices) if named else devices}: there is no GPU {absent[0]} here, torch sees "
                f"{count}. Ask for fewer, or set trainer.accelerator=cpu"
            )
        if not absent:
            return torch.device("cuda", indices[world.local_rank])
    if accelerator in ("auto", "cpu"):
        return torch.device("cpu")
    if accelerator == "mps" and torch.backends.mps.is_available():
        if world.size > 1:
            raise ConfigError(
                f"trainer.accelerator=mps is one device, and {world.size} were asked for: set trainer.devices=1"
            )
        return torch.device("mps")
    raise ConfigError(
        f"trainer.accelerator={accelerator}, but torch {torch.__version__} sees no such device here. "
        "Use trainer.accelerator=cpu (or auto), or install a torch build for the device"
    )


def available_memory(device: torch.device, world: World = ALONE) -> int:
    """Bytes that each rank may take: what the poorest has, for all must plan alike."""
    free = int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else host_memory() // world.local_size
    return least(free)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the host, where torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )
