"""Tensor parallelism: weight matrices split over ranks that see the same rows, after Megatron-LM.

    block (attention, feed-forward)     x → enter → column-split linears → row-split linear → leave → y

    plain                enter: as it is          ⟵ all-reduce of the gradient
                         leave: all-reduce        ⟵ as it is
    sequence parallel    enter: all-gather        ⟵ reduce-scatter
                         leave: reduce-scatter    ⟵ all-gather

Plain: Shoeybi et al. 2019 (https://arxiv.org/abs/1909.08053), section 3. Sequence parallel: Korthikanti et al. 2022
(https://arxiv.org/abs/2205.05198), section 4.2.

Parameters are DTensors, so that loading, FSDP and saving know their parts; the arithmetic is local. Which linear is
split how is transformers' own plan for the architecture. Embedding and head are split over the vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from dpolish.errors import ConfigError

_WAYS = {
    "colwise": "column",
    "rowwise": "row",
    "colwise_gather_output": "column gathered",
    "colwise_rep": "column gathered",
    "rowwise_split_input": "row split",
    "rowwise_rep": "row split",
    "embedding_rowwise": "vocabulary",
    "replicated_with_grad_allreduce": "partial",
}
"""transformers' names of ways to split, and ours."""


def split_model(model: PreTrainedModel, mesh: DeviceMesh, *, sequence: bool) -> None:
    """Split a model's matrices over `mesh`, before its weights are loaded; `sequence` also splits its activations.

    Raises ConfigError for an architecture that has no plan, or whose heads or widths the ranks do not divide.
    """
    plan = plan_of(model)
    require_divisible(model, plan, mesh.size())
    ways = {name: _WAYS[style] for name, style in plan.items()}
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding = model.get_input_embeddings()
    for name, way in ways.items():
        module = modules[name]
        if module is head or module is embedding or way == "partial":
            continue
        _split_linear(module, way, mesh, sequence)
    for block in blocks_of(model, ways):
        block.register_forward_pre_hook(partial(_enter_block, mesh, sequence), with_kwargs=True)
    _split_embedding(embedding, mesh)
    if head.weight is not embedding.weight:
        _distribute(head, "weight", mesh, 0)
    _distribute(head, "bias", mesh, 0)
    _replace_forward(head, partial(_gathered_head, head, mesh))
    model.tie_weights()
    if sequence:
        layers, norm = decoder_layers(model), final_norm(model)
        layers[0].register_forward_pre_hook(partial(_split_sequence, mesh), with_kwargs=True)
        norm.register_forward_hook(partial(_join_sequence, mesh))


def plan_of(model: PreTrainedModel) -> dict[str, str]:
    """Module name to transformers' way of splitting it. Raises ConfigError where there is none that we can follow."""
    name = model.config.architectures[0] if model.config.architectures else type(model).__name__
    asked = "model.tensor_model_parallel_size"
    instead = f"Set {asked}=1: FSDP spreads the model over the ranks all the same"
    rules: dict[str, str] = model.tp_plan or {}
    rules = {rule: style for rule, style in rules.items() if not rule.startswith("lm_head")}
    if not any(style in ("colwise", "colwise_gather_output") for style in rules.values()):
        raise ConfigError(f"{asked}: transformers has no tensor-parallel plan for {name}. {instead}")
    if strange := sorted({style for style in rules.values() if style not in _WAYS}):
        raise ConfigError(f"{asked}: {name} splits {', '.join(strange)}, which is not in this version. {instead}")
    expanded: dict[str, str] = model._expand_parallel_plan(rules)
    modules = {module for module, _ in model.named_modules()}
    return {module: style for module, style in expanded.items() if module in modules}


def require_divisible(model: PreTrainedModel, plan: dict[str, str], size: int) -> None:
    """Raise ConfigError unless attention heads, key-value heads and split widths are multiples of `size`."""
    config = model.config.get_text_config()
    heads = {"num_attention_heads": config.num_attention_heads}
    heads["num_key_value_heads"] = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    modules = dict(model.named_modules())
    widths = {}
    for name, style in plan.items():
        module = modules[name]
        if isinstance(module, nn.Linear):
            side = "out_features" if _WAYS[style].startswith("column") else "in_features"
            widths[f"{name}.{side}"] = getattr(module, side)
    gathered = any(_WAYS[style] == "column gathered" for style in plan.values())
    for name, number in {**({} if gathered else heads), **widths}.items():
        if number % size:
            raise ConfigError(
                f"model.tensor_model_parallel_size={size} does not divide {name}={number} of this model. "
                f"Sizes that do: {', '.join(str(fit) for fit in range(1, number + 1) if number % fit == 0)}"
            )


def partial_parameters(model: PreTrainedModel, *, sequence: bool) -> frozenset[str]:
    """Names of whole parameters of which each rank has a part of the gradient: it is summed over the mesh once a step.

    Norms of split heads; under sequence parallelism everything outside the blocks, which sees a part of the sequence.
    """
    ways = {name: _WAYS[style] for name, style in plan_of(model).items()}
    found = {f"{name}.{own}" for name, way in ways.items() if way == "partial" for own in _own(model, name)}
    if sequence:
        inside = {id(parameter) for block in blocks_of(model, ways) for parameter in _inside_block(block, ways, model)}
        sharded = [*decoder_layers(model).parameters(), *final_norm(model).parameters()]
        outside = {id(parameter) for parameter in sharded if id(parameter) not in inside}
        found |= {
            name
            for name, parameter in model.named_parameters()
            if id(parameter) in outside and not _split_over(parameter, "tensor")
        }
    return frozenset(found)


def _own(model: PreTrainedModel, name: str) -> list[str]:
    return [own for own, _ in model.get_submodule(name).named_parameters(recurse=False)]


def _inside_block(block: nn.Module, ways: dict[str, str], model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """A block's parameters that see the whole sequence: all but the biases added behind its reduce-scatter."""
    rows = {id(model.get_submodule(name)) for name, way in ways.items() if way.startswith("row")}
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not (id(module) in rows and name == "bias"):
                yield parameter


def _split_over(parameter: nn.Parameter, dimension: str) -> bool:
    return isinstance(parameter, DTensor) and dimension in (parameter.device_mesh.mesh_dim_names or ())


def blocks_of(model: PreTrainedModel, ways: dict[str, str]) -> list[nn.Module]:
    """The modules whose input feeds column-split linears: attention and feed-forward of every layer."""
    names = dict.fromkeys(name.rpartition(".")[0] for name, way in ways.items() if way.startswith("column"))
    return [model.get_submodule(name) for name in names]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of decoder layers."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [part for part in model.base_model.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    assert stacks, f"{type(model).__name__} has no list of {count} layers"
    return max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm behind the last layer: the last child of the backbone whose name says so."""
    norms = [part for name, part in model.base_model.named_children() if "norm" in name or name == "ln_f"]
    assert norms, f"{type(model).__name__} has no final norm"
    return norms[-1]


# --- linears ----------------------------------------------------------------------------------------------------------


def _distribute(module: nn.Module, name: str, mesh: DeviceMesh, dim: int) -> None:
    """Make a module's parameter a DTensor that is split along `dim`; nothing where it has none."""
    parameter = getattr(module, name, None)
    if parameter is not None:
        split = distribute_tensor(parameter, mesh, [Shard(dim)], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(split, requires_grad=parameter.requires_grad))


def _split_linear(module: nn.Module, way: str, mesh: DeviceMesh, sequence: bool) -> None:
    if way.startswith("column"):
        _distribute(module, "weight", mesh, 0)
        _distribute(module, "bias", mesh, 0)
        _replace_forward(module, partial(_column, module, mesh if way == "column gathered" else None))
    else:
        _distribute(module, "weight", mesh, 1)
        _replace_forward(module, partial(_row, module, mesh, way == "row split", sequence))


def _replace_forward(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    module.forward = forward


def _column(module: nn.Module, gather: DeviceMesh | None, hidden: Tensor) -> Tensor:
    out = F.linear(hidden, local(module.weight), local(module.bias))
    return out if gather is None else _Gather.apply(out, gather.get_group(), -1)  # type: ignore[no-untyped-call]


def _row(module: nn.Module, mesh: DeviceMesh, split: bool, sequence: bool, hidden: Tensor) -> Tensor:
    if split:
        hidden = _Split.apply(hidden, mesh.get_group(), -1)  # type: ignore[no-untyped-call]
    out = F.linear(hidden, local(module.weight))
    leave: Any = _ReduceScatter if sequence else _Reduce
    out = leave.apply(out, mesh.get_group())
    bias = local(module.bias)
    result: Tensor = out if bias is None else out + bias
    return result


def local(parameter: Any) -> Any:
    """This rank's part of a parameter, with gradient; None is None."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


# --- where blocks and sequences begin and end -------------------------------------------------------------------------


def _enter_block(
    mesh: DeviceMesh, sequence: bool, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    del block
    enter: Any = _GatherSequence if sequence else _Copy
    return _replaced(args, kwargs, lambda hidden: enter.apply(hidden, mesh.get_group()))


def _split_sequence(
    mesh: DeviceMesh, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    del layer
    return _replaced(args, kwargs, lambda hidden: _Split.apply(hidden, mesh.get_group(), 1))  # type: ignore[no-untyped-call]


def _join_sequence(mesh: DeviceMesh, norm: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    del norm, args
    joined: Tensor = _Gather.apply(out, mesh.get_group(), 1)  # type: ignore[no-untyped-call]
    return joined


def _replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer or block with its hidden states changed: `hidden_states`, or the first."""
    if "hidden_states" in kwargs:
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}
    return (change(args[0]), *args[1:]), kwargs


# --- embedding and head -----------------------------------------------------------------------------------------------


def _split_embedding(module: nn.Module, mesh: DeviceMesh) -> None:
    """Split an embedding over the vocabulary: a rank looks up the tokens it has, and the ranks' vectors are added."""
    assert isinstance(module, nn.Embedding)
    _distribute(module, "weight", mesh, 0)
    start, stop = vocabulary_range(module.num_embeddings, mesh)
    padding = module.padding_idx
    # A padding token's vector gets no gradient: the rank that has it keeps that.
    module.padding_idx = padding - start if padding is not None and start <= padding < stop else None
    _replace_forward(module, partial(_look_up, module, type(module).forward, mesh, start, stop))


def vocabulary_range(size: int, mesh: DeviceMesh) -> tuple[int, int]:
    """The token ids [start, stop) of this rank: equal parts, of which the last may be shorter."""
    part = -(-size // mesh.size())
    start = min(mesh.get_local_rank() * part, size)
    return start, min(start + part, size)


def _look_up(
    module: nn.Embedding, whole: Callable[..., Tensor], mesh: DeviceMesh, start: int, stop: int, tokens: Tensor
) -> Tensor:
    mine = (tokens >= start) & (tokens < stop)
    weight = module.weight
    own: dict[str, Any] = module._parameters
    own["weight"] = local(weight)  # as a plain tensor; the class's own forward may scale
    try:
        vectors = whole(module, torch.where(mine, tokens - start, 0))
    finally:
        own["weight"] = weight
    vectors = torch.where(mine[..., None], vectors, vectors.new_zeros(()))
    total: Tensor = _Reduce.apply(vectors, mesh.get_group())  # type: ignore[no-untyped-call]
    return total


def _gathered_head(head: nn.Linear, mesh: DeviceMesh, hidden: Tensor) -> Tensor:
    """Whole logits, for a start-up check or for generation; training never makes them."""
    part = -(-head.out_features // mesh.size())
    logits = F.linear(hidden, local(head.weight), local(head.bias))
    padded = F.pad(logits, (0, part - logits.shape[-1]))
    whole: Tensor = _Gather.apply(padded, mesh.get_group(), -1)  # type: ignore[no-untyped-call]
    return whole[..., : head.out_features]


# --- collectives with gradients ---------------------------------------------------------------------------------------


def _gather(part: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim=dim)


def _scatter_sum(whole: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
    parts = [part.contiguous() for part in whole.chunk(group.size(), dim=dim)]
    mine = torch.empty_like(parts[group.rank()])
    if dist.get_backend(group) == "gloo":  # its reduce-scatter of lists is not everywhere
        dist.all_reduce(whole := torch.stack(parts), group=group)
        return whole[group.rank()].clone()
    dist.reduce_scatter(mine, parts, group=group)
    return mine


def _sum(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = part.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total


def _mine(whole: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
    assert whole.shape[dim] % group.size() == 0, f"{whole.shape[dim]} places do not divide over {group.size()} ranks"
    return whole.chunk(group.size(), dim=dim)[group.rank()].contiguous()


class _Copy(torch.autograd.Function):
    """As it is; the gradient, of which each rank has a part, is summed."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, group: dist.ProcessGroup) -> Tensor:
        """The same tensor."""
        ctx.group = group  # type: ignore[attr-defined]
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The sum over ranks."""
        return _sum(grads[0], ctx.group), None  # type: ignore[attr-defined]


class _Reduce(torch.autograd.Function):
    """The sum over ranks; the gradient is as it is."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        """The sum."""
        del ctx
        return _sum(part, group)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The same gradient."""
        del ctx
        return grads[0], None


class _GatherSequence(torch.autograd.Function):
    """The whole sequence from its parts; of the gradient each rank gets the sum of its own part."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        """(B, W, D) from (B, W/n, D)."""
        ctx.group = group  # type: ignore[attr-defined]
        return _gather(part, group, 1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """(B, W/n, D)."""
        return _scatter_sum(grads[0], ctx.group, 1), None  # type: ignore[attr-defined]


class _ReduceScatter(torch.autograd.Function):
    """This rank's part of the sequence of the sum over ranks; the gradient is gathered."""

    @staticmethod
    def forward(ctx: FunctionCtx, whole: Tensor, group: dist.ProcessGroup) -> Tensor:
        """(B, W/n, D) from (B, W, D)."""
        ctx.group = group  # type: ignore[attr-defined]
        return _scatter_sum(whole, group, 1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """(B, W, D)."""
        return _gather(grads[0], ctx.group, 1), None  # type: ignore[attr-defined]


class _Split(torch.autograd.Function):
    """This rank's part of what all ranks have; the gradient is gathered."""

    @staticmethod
    def forward(ctx: FunctionCtx, whole: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
        """A slice."""
        ctx.group, ctx.dim = group, dim  # type: ignore[attr-defined]
        return _mine(whole, group, dim)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The whole."""
        return _gather(grads[0], ctx.group, ctx.dim), None, None  # type: ignore[attr-defined]


class _Gather(torch.autograd.Function):
    """The whole from its parts, for work that all ranks do alike; the gradient is this rank's part."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor, group: dist.ProcessGroup, dim: int) -> Tensor:
        """The whole."""
        ctx.group, ctx.dim = group, dim  # type: ignore[attr-defined]
        return _gather(part, group, dim)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """A slice."""
        return _mine(grads[0], ctx.group, ctx.dim), None, None  # type: ignore[attr-defined]
