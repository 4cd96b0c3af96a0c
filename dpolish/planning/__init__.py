"""Every number that follows from a configuration, its data, its model and its machine, computed once.

    values      sizes of the data, the machine, and the plan that follows
    plan        the derived numbers, and every refusal, before any compute
    memory      bytes of one rank           traffic    what ranks send to each other
    nearest     what to change to fit       gpus       GPUs that need not be here
    describe, ranks, remarks                what `dpolish plan` prints

Nothing here needs torch: `dpolish plan` prints it, the run saves it, the loop reads it.
"""

from dpolish.planning.describe import curve, describe
from dpolish.planning.gpus import DEFAULT_GPU, GPUS, PER_NODE, Gpu
from dpolish.planning.plan import (
    SEQUENCE_KEYS,
    make_plan,
    rank_layout,
    sequence_length,
    share_or_count,
    validation_batch_size,
)
from dpolish.planning.ranks import Outlook, nearest_line, rank_lines
from dpolish.planning.remarks import remarks
from dpolish.planning.values import DataFacts, Machine, Memory, RunPlan

__all__ = [
    "DEFAULT_GPU",
    "GPUS",
    "PER_NODE",
    "SEQUENCE_KEYS",
    "DataFacts",
    "Gpu",
    "Machine",
    "Memory",
    "Outlook",
    "RunPlan",
    "curve",
    "describe",
    "make_plan",
    "nearest_line",
    "rank_layout",
    "rank_lines",
    "remarks",
    "sequence_length",
    "share_or_count",
    "validation_batch_size",
]
