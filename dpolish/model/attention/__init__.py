"""Attention over shared prompts: `interface` is what transformers calls, `geometry` says what may see what."""

from dpolish.model.attention.geometry import Geometry, Spec, tails, use_geometry, visible
from dpolish.model.attention.interface import ATTENTION_NAME, BACKENDS, attend, choose_backend, register

__all__ = [
    "ATTENTION_NAME",
    "BACKENDS",
    "Geometry",
    "Spec",
    "attend",
    "choose_backend",
    "register",
    "tails",
    "use_geometry",
    "visible",
]
