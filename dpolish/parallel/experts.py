"""Expert parallelism: each rank has experts of its own, and ranks send each other the tokens that were routed to them.

transformers has the exchange; here it is asked for, or refused by name.
"""

from torch import nn
from transformers import PreTrainedModel
from transformers.distributed.expert_parallel import apply_expert_parallelism

from dpolish.errors import ConfigError
from dpolish.parallel.mesh import Mesh

_DISPATCHED = "ep_dispatch_experts"


def split_experts(model: PreTrainedModel, mesh: Mesh) -> None:
    """Spread a model's experts over `mesh.experts`, before its weights are loaded.

    Raises ConfigError for a model without experts that transformers can spread, or with a number that does not divide.
    """
    assert mesh.experts is not None
    assert mesh.groups is not None
    asked = f"model.expert_model_parallel_size={mesh.layout.expert}"
    name = type(model).__name__
    modules = experts_of(model)
    if not modules:
        raise ConfigError(f"{asked}: transformers has no plan for experts of {name}. Set it to 1")
    for module in modules:
        count = getattr(module, "num_experts", 0)
        if not isinstance(count, int) or count % mesh.layout.expert:
            raise ConfigError(
                f"{asked} does not divide the {count} experts of {name}. Sizes that do: "
                f"{', '.join(str(n) for n in range(1, int(count) + 1) if int(count) % n == 0)}"
            )
    plan = model._expand_parallel_plan(dict(model.ep_plan))
    apply_expert_parallelism(model, mesh.experts["expert"], mesh.groups["tensor"], plan, "all_to_all")


def experts_of(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that hold the experts of one layer each."""
    plan = model._expand_parallel_plan(dict(model.ep_plan or {}))
    return [model.get_submodule(name) for name, style in plan.items() if style == _DISPATCHED]
