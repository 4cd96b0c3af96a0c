"""dpolish polishes language models: SFT, then DPO and its relatives, on PyTorch and Hugging Face.

The verbs of the command line are functions here: `check`, `plan`, `train` (DPO or SFT, by the configuration that
`compose` makes) and `generate`; the pieces are pure functions in their modules (`dpolish.losses.preference`,
`dpolish.data.pack`, `dpolish.model.head`, …).
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dpolish.api import RunResult, check, generate, plan, train
    from dpolish.config.compose import Composed, compose
    from dpolish.errors import DpolishError

__all__ = ["Composed", "DpolishError", "RunResult", "__version__", "check", "compose", "generate", "plan", "train"]

_HOMES = {
    "Composed": "dpolish.config.compose",
    "DpolishError": "dpolish.errors",
    "RunResult": "dpolish.api",
    "check": "dpolish.api",
    "compose": "dpolish.config.compose",
    "generate": "dpolish.api",
    "plan": "dpolish.api",
    "train": "dpolish.api",
}


def __getattr__(name: str) -> object:
    """Load what is asked for, and not torch for what does not need it."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dpolish' has no attribute {name!r}")
