"""Where a step's time goes, by cause, from torch's profiler."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import cast

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

GEMM = "matrix products of layers"
HEAD_GEMM = "matrix products of the head"
SOFTMAX = "softmax of the head"
ATTENTION = "attention"
OPTIMIZER = "optimizer and clipping"
ELEMENTWISE = "norms, activations, rotary, copies"
OUTSIDE = "outside operators"

_PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm"}
_UPDATES = ("Optimizer.step", "aten::_fused_adam", "aten::_foreach", "aten::linalg_vector_norm")


def shares_by_cause(step: Callable[[], object], vocabulary: int) -> dict[str, float]:
    """Run `step` once under the profiler; the share of its wall time by cause, largest first.

    The profiler itself costs a few microseconds an operator, which fall on small operators and on what lies outside.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        start = perf_counter()
        step()
        wall = perf_counter() - start
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events() or []:
        seconds[_cause(event, vocabulary)] += event.self_cpu_time_total / 1e6
    inside = sum(seconds.values()) - seconds.pop(OUTSIDE, 0.0)
    seconds[OUTSIDE] = max(wall - inside, 0.0)
    return {cause: spent / wall for cause, spent in sorted(seconds.items(), key=lambda item: -item[1])}


def _cause(event: FunctionEvent, vocabulary: int) -> str:
    names = [event.name, *(parent.name for parent in _parents(event))]
    over_vocabulary = any(vocabulary in shape for shape in cast("list[list[int]]", event.input_shapes or []))
    if any(name.startswith(_UPDATES) for name in names):
        return OPTIMIZER
    if event.name in _PRODUCTS and not any("Attention" in name for name in names):
        return HEAD_GEMM if over_vocabulary else GEMM
    if any("Attention" in name or "scaled_dot_product" in name for name in names):
        return ATTENTION
    if over_vocabulary:
        return SOFTMAX
    return ELEMENTWISE if event.name.startswith(("aten::", "autograd::engine", "torch::autograd")) else OUTSIDE


def _parents(event: FunctionEvent) -> Iterator[FunctionEvent]:
    while (parent := event.cpu_parent) is not None:
        yield parent
        event = parent
