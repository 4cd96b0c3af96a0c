"""One optimizer step: gradient norm, clipping, AdamW, and float32 masters under a bfloat16 model.

    float32 model     weights are the model's own parameters
    bfloat16 model    weights are float32 masters. When a backward pass has completed a parameter's gradient, it is
                      added to its master's in float32 and freed; after the update the masters are rounded back.
    many ranks        weights are this rank's parts of the parameters, float32, as plain tensors: the arithmetic is
                      elementwise, so that it does not matter how they are spread. Only the norm is everybody's.

A weight is decayed unless it is a bias or has one dimension (norms), as in NeMo. Frozen parameters are left out, tied
ones count once.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from dpolish.errors import RunError
from dpolish.parallel.mesh import Mesh
from dpolish.parallel.tensor import local
from dpolish.registry import Registry

BuildOptimizer = Callable[..., torch.optim.Optimizer]
"""`(groups, *, betas, eps, fused) -> optimizer`; the learning rate is set before every step."""

OPTIMIZERS: Registry[BuildOptimizer] = Registry("optimizer")


class Optimizer:
    """A model's weights and how they move: `gradient_share`, summed over all ranks, is the squared norm for `step`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        betas: tuple[float, float],
        eps: float = 1e-8,
        weight_decay: float,
        max_norm: float | None,
        initial: Mapping[str, Tensor] | None = None,
        mesh: Mesh | None = None,
        partial: Collection[str] = (),
    ) -> None:
        """`max_norm` 0 or None does not clip; `initial` are float32 values, by name, for masters to start from.

        `partial` are parameters of which each tensor-parallel rank has a part of the gradient.
        """
        self.masters = MasterWeights(model, initial or {}, 1 if mesh is None else mesh.size)
        self._partial = [weight for name, weight in self.masters.weights.items() if name in partial]
        self._alone = mesh is None or mesh.size == 1
        self._tensor = None if mesh is None else mesh.tensor
        self.max_norm = max_norm
        # One fused kernel per weight takes a fifth of the time on a CPU; other devices may not have it.
        fused = all(weight.device.type in ("cpu", "cuda") for weight in self.masters.weights.values())
        groups = parameter_groups(self.masters.weights, weight_decay)
        self.inner = OPTIMIZERS[name](groups, betas=betas, eps=eps, fused=fused)

    def gradient_share(self) -> Tensor:
        """float64 (): this rank's share of the squared norm of all gradients. Call it once, behind all backwards."""
        self.masters.take_gradients()
        if self._partial and self._tensor is not None:
            _sum_over(self._tensor, [weight.grad for weight in self._partial if weight.grad is not None])
        shares = [
            gradient_norm([weight.grad]).double().square() / self.masters.copies[name]
            for name, weight in self.masters.weights.items()
            if weight.grad is not None
        ]
        return torch.stack(shares).sum() if shares else torch.zeros((), dtype=torch.float64)

    def step(self, lr: float, norm: float) -> None:
        """Update every weight at the rate `lr`, with gradients scaled down where their `norm` is beyond `max_norm`.

        Raises RunError, and updates nothing, for a norm that is not finite.
        """
        if not math.isfinite(norm):
            raise RunError(_not_finite(self.masters.weights, norm, alone=self._alone))
        clip_gradients(self.masters.weights.values(), self.max_norm, norm)
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        self.masters.after_step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=True)


class MasterWeights:
    """What the optimizer updates for each trainable parameter of a model: itself if float32, a float32 master if lower.

    A bfloat16 weight near 1 cannot take an update smaller than 2^-8: the masters are where such updates add up.
    """

    def __init__(self, model: nn.Module, initial: Mapping[str, Tensor], ranks: int = 1) -> None:
        """Make masters from `initial` (the checkpoint before rounding) where it has the name, else from the model."""
        self.weights: dict[str, nn.Parameter] = {}
        self.copies: dict[str, int] = {}
        """How many ranks have the same part of each weight."""
        self._rounded: list[tuple[Tensor, nn.Parameter]] = []
        self._parts: list[tuple[DTensor, nn.Parameter]] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            self.copies[name] = copies(parameter, ranks)
            if isinstance(parameter, DTensor):
                self.weights[name] = nn.Parameter(parameter.to_local().detach())  # the same memory
                self._parts.append((parameter, self.weights[name]))
                continue
            if parameter.dtype.itemsize >= 4:
                self.weights[name] = parameter
                continue
            master = nn.Parameter(_float32(initial.get(name, parameter).detach()))
            _after_accumulation(parameter, _move_gradient_to(master))
            self.weights[name] = master
            self._rounded.append((parameter, master))
        self.after_step()

    def take_gradients(self) -> None:
        """Move the gradients of parameters that are spread over ranks to this rank's parts."""
        for parameter, part in self._parts:
            gradient = parameter.grad
            part.grad = None if gradient is None else local(gradient)
            parameter.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Round the masters back into the model."""
        for parameter, master in self._rounded:
            parameter.copy_(master)


def _float32(weight: Tensor) -> Tensor:
    """The weight in float32: itself where it is, for the values as they were before rounding need no second copy."""
    return weight.to(torch.float32)


def parameter_groups(weights: Mapping[str, Tensor], weight_decay: float) -> list[dict[str, object]]:
    """The weights in at most two groups: matrices, decayed; biases and everything with one dimension, not."""
    decayed = [weight for name, weight in weights.items() if _decays(name, weight)]
    others = [weight for name, weight in weights.items() if not _decays(name, weight)]
    rates = ((decayed, weight_decay), (others, 0.0))
    return [{"params": members, "weight_decay": rate} for members, rate in rates if members]


@OPTIMIZERS.register("adamw")
@OPTIMIZERS.register("fused_adam")
@OPTIMIZERS.register("distributed_fused_adam")
@OPTIMIZERS.register("mcore_distributed_optim")
def adamw(
    groups: list[dict[str, object]], *, betas: tuple[float, float], eps: float, fused: bool
) -> torch.optim.Optimizer:
    """AdamW: one rule, for which NeMo has several engines."""
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=fused)


def copies(parameter: nn.Parameter, ranks: int) -> int:
    """How many of so many ranks have the same part of a parameter: all of them, if it is not spread."""
    if not isinstance(parameter, DTensor):
        return ranks
    sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
    return ranks // math.prod(size for size, placement in sizes if not placement.is_replicate())


def _sum_over(mesh: DeviceMesh, gradients: Sequence[Tensor]) -> None:
    """Sum gradients over a mesh, in place, in one collective."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=mesh.get_group())
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, whole in zip(gradients, parts, strict=True):
        gradient.copy_(whole.view_as(gradient))


def clip_gradients(weights: Iterable[Tensor], max_norm: float | None, norm: float) -> None:
    """Scale gradients, whose norm is `norm`, down to `max_norm` if that is beyond it; 0 or None: never."""
    # torch's own rule; its pass over the gradients is left out where it would multiply by 1.
    if max_norm and norm + 1e-6 > max_norm:
        trained = [weight for weight in weights if weight.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(trained, max_norm, torch.tensor(norm))


@torch.no_grad()
def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, float32: summed in float32 within a row, in float64 over rows and weights.

    One float32 sum over an embedding of 28 million entries loses up to 3e-4 of the norm on a CPU. This loses 1e-7, and
    is faster.
    """
    norms = [_norm(torch.linalg.vector_norm(gradient, dim=-1)) for gradient in gradients]
    return _norm(torch.stack(norms)).float() if norms else torch.zeros(())


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm


def _after_accumulation(parameter: nn.Parameter, action: Callable[[Tensor], None]) -> None:
    register: Callable[[Callable[[Tensor], None]], object] = parameter.register_post_accumulate_grad_hook
    register(action)


def _move_gradient_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.to(master.dtype)
        else:
            master.grad.add_(parameter.grad)  # float32 + bfloat16, added in float32
        parameter.grad = None

    return move


def _decays(name: str, weight: Tensor) -> bool:
    return weight.ndim > 1 and not name.endswith("bias")


def _not_finite(weights: Mapping[str, Tensor], norm: float, *, alone: bool) -> str:
    bad = [name for name, weight in weights.items() if weight.grad is not None and not weight.grad.isfinite().all()]
    if bad:
        where = f"not finite in {len(bad)} of {len(weights)} weights, first {bad[0]}"
    elif math.isnan(norm):  # finite numbers overflow to infinity, never to NaN
        where = "not finite in another rank's part of the weights"
    else:
        where = "they are too large" if alone else "they are too large, or infinite in another rank's part"
    return (
        f"the gradient norm is {norm}: {where}. The update was not made.\n"
        "  A learning rate that is too high is the usual cause; lower model.optim.lr, or lengthen the warm-up."
    )
