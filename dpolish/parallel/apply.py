"""How a model is spread over ranks: the whole order, in one function, on a model whose weights are not loaded yet.

    tensor parallelism → expert parallelism → recomputation of activations → compilation → FSDP

Compiled layers have FSDP's hooks outside of them; a recomputed layer gathers its weights again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import Shard
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate as Joined
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightTransform

from dpolish.errors import ConfigError
from dpolish.parallel.experts import experts_of, split_experts
from dpolish.parallel.mesh import Mesh
from dpolish.parallel.tensor import decoder_layers, local, split_model

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """What a run asks of the model's shape in memory."""

    mesh: Mesh
    dtype: torch.dtype
    """What layers compute in; under FSDP the weights themselves stay float32."""
    sequence_parallel: bool = False
    recompute: bool = False
    """Recompute each layer's activations in the backward pass."""
    compiled: bool = False
    """Compile each layer."""
    offload: bool = False
    """Keep weights, gradients and optimizer state in the host's memory."""


def spread(model: PreTrainedModel, how: Spread) -> None:
    """Prepare `model`, in place. Raises ConfigError where it cannot be split as asked."""
    model.tie_weights()  # FSDP must see one parameter where there is one
    if how.mesh.tensor is not None:
        split_model(model, how.mesh.tensor, sequence=how.sequence_parallel)
    if how.mesh.experts is not None:
        split_experts(model, how.mesh)
    if how.recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if how.compiled:
        for layer in decoder_layers(model):
            layer.compile(dynamic=True)  # no two micro-batches have the same length
    if how.mesh.groups is not None:
        _shard(model, how)


def _shard(model: PreTrainedModel, how: Spread) -> None:
    """FSDP2 over the data-parallel ranks: a group per layer, and one for the embeddings, the last norm and the head."""
    assert how.mesh.groups is not None
    precision = MixedPrecisionPolicy(
        param_dtype=None if how.dtype == torch.float32 else how.dtype, reduce_dtype=torch.float32
    )
    offload = CPUOffloadPolicy(pin_memory=how.mesh.device.type != "cpu") if how.offload else OffloadPolicy()
    options: dict[str, Any] = {
        "mesh": how.mesh.groups["replicate", "shard"],
        "mp_policy": precision,
        "offload_policy": offload,
    }
    if how.mesh.experts is not None:
        mesh = how.mesh.experts["replicate", "shard"]
        cut = _cut(model, mesh)
        for module in experts_of(model):
            sharded = fully_shard(module, **{**options, "mesh": mesh, "shard_placement_fn": cut})
            assert isinstance(sharded, FSDPModule)
            # Its tokens come from all data-parallel ranks: the sum over those is what the others average over.
            sharded.set_gradient_divide_factor(float(how.mesh.layout.replicate * how.mesh.layout.shard))
            if how.mesh.experts["shard"].size() > 1:  # other back ends than NCCL know no factor of their own
                sharded.set_force_sum_reduction_for_comms(True)
    options["shard_placement_fn"] = _cut(model, options["mesh"])
    for layer in decoder_layers(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    model._dpolish_run = MethodType(_run, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "_dpolish_run")


def _cut(model: PreTrainedModel, mesh: DeviceMesh) -> Callable[[nn.Parameter], Shard | None]:
    """Which dimension of a parameter the ranks of `mesh` share: the first; where experts do not go round, their last.

    transformers stacks the experts that a rank has, and cannot stack none. Their last dimension passes through unmoved.
    """
    ranks = mesh["shard"].size()
    transforms = get_model_conversion_mapping(model)
    stacked = {id(parameter) for name, parameter in model.named_parameters() if _stacked(name, transforms)}

    def dimension(parameter: nn.Parameter) -> Shard | None:
        shape = tuple(local(parameter).shape)
        if id(parameter) not in stacked or -(-shape[0] // ranks) * (ranks - 1) < shape[0]:
            return None
        if shape[-1] % ranks == 0:
            return Shard(len(shape) - 1)
        raise ConfigError(
            f"{type(model).__name__}: {shape[0]} experts cannot be sharded over {ranks} ranks so that each has some, "
            f"nor can their weights of {' × '.join(map(str, shape[1:]))}, for {ranks} does not divide {shape[-1]}. Set "
            "model.fsdp_sharding_strategy=replicate, ask for another number of devices, or give ranks experts of "
            "their own (model.expert_model_parallel_size)"
        )

    return dimension


def _stacked(name: str, transforms: Sequence[WeightTransform]) -> bool:
    """Whether transformers stacks a parameter of experts that lie one by one in the checkpoint, and does no more."""
    for transform in transforms:
        if isinstance(transform, WeightConverter) and name.endswith(tuple(transform.target_patterns)):
            does = {(type(operation), getattr(operation, "dim", None)) for operation in transform.operations}
            return (MergeModulelist, 0) in does and does <= {(MergeModulelist, 0), (Joined, 1)}
    return False


def _run(model: PreTrainedModel, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    del model
    return function(*args, **kwargs)


def within(model: PreTrainedModel, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function(*args)`, with the weights of embeddings and head gathered, and gradients reduced after its backward."""
    if isinstance(model, FSDPModule):
        result: T = model._dpolish_run(function, *args, **kwargs)  # type: ignore[operator]
        return result
    return function(*args, **kwargs)


def before_backward(model: PreTrainedModel, *, last: bool, layout_shards: int) -> None:
    """Say whether this is the last backward pass of a step, behind which gradients are reduced.

    Whole copies keep their gradients until then; sharded ones are reduce-scattered each time, and only all-reduced
    between the copies at the end.
    """
    if not isinstance(model, FSDPModule):
        return
    if layout_shards == 1:
        model.set_requires_gradient_sync(last)
    else:
        model.set_requires_all_reduce(last)


def at_rest(model: PreTrainedModel) -> None:
    """Put every weight back into its shards, as optimizer and saving want them."""
    if isinstance(model, FSDPModule):
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
