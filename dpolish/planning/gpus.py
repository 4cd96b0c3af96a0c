"""GPUs that a run can be planned for without having one: their makers' figures, and what networks usually give.

Assumptions, printed with every plan that uses them. Bandwidths are bytes a second, per GPU and direction.
"""

from dataclasses import dataclass

from dpolish.registry import Registry

PER_NODE = 8
"""GPUs of a node, where `trainer.devices` does not say."""
USED_SHARE = 0.4
"""Share of the peak rate that training reaches."""
DEFAULT_GPU = "h100-80gb"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU in a node with others of its kind."""

    name: str
    memory: int
    """Bytes that a process sees of it."""
    bf16_flops: float
    """Operations a second of dense bf16 products, at best."""
    within_node: float
    """Bytes a second to another GPU of its node."""
    between_nodes: float
    """Bytes a second over its share of the node's network."""


GPUS: Registry[Gpu] = Registry("GPU")
for _gpu in (
    Gpu("a100-40gb", int(39.4 * 2**30), 312e12, 300e9, 25e9),
    Gpu("a100-80gb", int(79.1 * 2**30), 312e12, 300e9, 25e9),
    Gpu("l40s-48gb", int(44.4 * 2**30), 362e12, 32e9, 12.5e9),
    Gpu("h100-80gb", int(79.1 * 2**30), 989e12, 450e9, 50e9),
    Gpu("h200-141gb", int(139.8 * 2**30), 989e12, 450e9, 50e9),
    Gpu("b200-180gb", int(178.3 * 2**30), 2250e12, 900e9, 50e9),
    Gpu("mi300x-192gb", int(191.9 * 2**30), 1307e12, 448e9, 50e9),
):
    GPUS.register(_gpu.name)(_gpu)
