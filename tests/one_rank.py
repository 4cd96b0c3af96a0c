"""A model on one rank, as the product loads it."""

from pathlib import Path

import torch

from dpolish.layout import RankLayout
from dpolish.model.load import LoadedModel, load_model, logit_transform
from dpolish.model.logprobs import Policy
from dpolish.parallel.apply import Spread
from dpolish.parallel.mesh import Mesh

MESH = Mesh(RankLayout(), torch.device("cpu"))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """The model of a folder on the CPU."""
    return load_model(str(folder), Spread(MESH, dtype))


def policy_of(model: torch.nn.Module, backend: str = "segments") -> Policy:
    """The model as training runs it."""
    return Policy(model, backend, logit_transform(model.config), model.dtype, MESH)  # type: ignore[arg-type]
