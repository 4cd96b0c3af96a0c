"""RMS norms in a few passes over memory instead of a dozen, where torch has no kernel for them: float32 on a CPU.

    y = x · r · w,   r = 1 / √(mean(x²) + ε)          Zhang & Sennrich 2019 (https://arxiv.org/abs/1910.07467), eq. 4

Written out in single operations, as models do, forward and backward read and write the residual stream ten times and
keep it twice. Here it is kept once. A module is replaced only if its own forward gives the same numbers; the model's
weights and modules stay as they are.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

_OFFSETS = (0.0, 1.0)
"""What is added to the weight: Gemma stores it less 1."""


def fuse_norms(model: PreTrainedModel) -> int:
    """Give every RMS norm that is float32 and on a CPU the short forward; returns how many have it."""
    fused = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
            continue
        if not isinstance(weight, nn.Parameter) or weight.dtype != torch.float32 or weight.device.type != "cpu":
            continue
        offset = _offset(module, epsilon)
        if offset is not None:
            module.forward = partial(rms_norm, module, epsilon, offset)
            fused += 1
    return fused


@torch.no_grad()
def _offset(module: nn.Module, epsilon: float) -> float | None:
    """The offset with which `rms_norm` is what the module computes; None where neither is.

    Tried on a copy with a weight of its own: the module's may be spread over ranks.
    """
    own = copy.copy(module)
    size = len(module.weight)  # type: ignore[arg-type]
    own._parameters = {**module._parameters, "weight": nn.Parameter(torch.linspace(-1.0, 1.5, size).cos())}
    probe = torch.linspace(-2.0, 3.0, 3 * size).view(3, -1).sin()
    want: Tensor = own.forward(probe)
    for offset in _OFFSETS:
        if torch.allclose(rms_norm(own, epsilon, offset, probe), want, rtol=2e-6, atol=2e-6):
            return offset
    return None


def rms_norm(module: nn.Module, epsilon: float, offset: float, hidden: Tensor) -> Tensor:
    """(…, D) normalised `hidden`, scaled by the module's weight (D,) plus `offset`."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    scale = weight if offset == 0.0 else weight + offset
    out: Tensor = _RmsNorm.apply(hidden, scale, epsilon)  # type: ignore[no-untyped-call]
    return out


class _RmsNorm(torch.autograd.Function):
    """With p = dy·x and c = -r³ (p·w) / D:  dx = r dy w + c x,  dw = Σ r p."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, scale: Tensor, epsilon: float) -> Tensor:
        """(…, D)."""
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        inverse = norm.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, inverse, scale)
        out: Tensor = (hidden * inverse).mul_(scale)
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden and scale."""
        hidden, inverse, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        x, dy, r = hidden.flatten(0, -2), grads[0].flatten(0, -2), inverse.flatten(0, -2)
        product = dy * x
        dscale = (r.T @ product)[0]
        correction = (product @ scale)[:, None].mul_(r**3).div_(-x.shape[-1])
        dx = (dy * scale).mul_(r).addcmul_(x, correction)
        dhidden: Tensor = dx.view_as(hidden)
        return dhidden, dscale, None
