"""A Hugging Face folder or hub id → a model that is fit to train.

That is: complete, finite, without dropout, on our attention.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.models.auto.auto_factory import _get_model_class

from dpolish.errors import InputError, ModelError
from dpolish.model import attention
from dpolish.model.head import LogitTransform
from dpolish.model.norms import fuse_norms
from dpolish.parallel.apply import Spread, spread
from dpolish.parallel.tensor import local

_NOISE = re.compile(r"dropout|_pdrop$|layerdrop|jitter_noise|drop_path")
"""Configuration fields that make a forward pass random."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to train, and what training and saving it need to know."""

    model: PreTrainedModel
    masters: dict[str, torch.Tensor] | None
    """The weights in float32, by name, where the model runs in a lower precision."""
    silenced: dict[str, float]
    """Configuration fields that were set to zero, with the values they had."""
    unexpected: tuple[str, ...]
    """Tensors in the checkpoint that the architecture has no place for."""


def load_config(path: str) -> PreTrainedConfig:
    """The architecture. Code that a checkpoint carries is never run.

    Raises ModelError when there is none, or when only such code could read it.
    """
    with _explained(path, "config.json"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return config


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model. Raises ModelError when it cannot be read."""
    with _explained(path, "the tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        return tokenizer


def load_model(path: str, how: Spread) -> LoadedModel:
    """The model spread over the ranks, with dropout off everywhere and our attention function where it can be placed.

    On many ranks each reads its own part of every tensor: none ever holds the whole model. There weights stay float32
    and FSDP computes in `how.dtype`; on one the model itself has that dtype. Raises ModelError for missing or misshapen
    tensors and for non-finite weights, ConfigError for a model that cannot be spread as asked: nothing is ever
    initialised at random.
    """
    config = load_config(path)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{path}: the weights are quantized and cannot be trained; name the model as it was before")
    silenced = silence(config)
    attention.register(compiled=how.compiled)
    with _explained(path, "the weights"):
        model, info = _from_pretrained(path, config, torch.promote_types(how.dtype, torch.float32), how)
    faults = [f"missing {name}" for name in sorted(info["missing_keys"])]
    faults += [f"{name} has another shape than the configuration says" for name, *_ in sorted(info["mismatched_keys"])]
    if faults:
        shown = "\n  ".join(faults[:10]) + (f"\n  … and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise ModelError(f"{path}: the checkpoint does not fit its config.json:\n  {shown}")
    _require_finite(model, path)
    if model._can_set_attn_implementation():  # the others keep their own, and the start-up check says so
        model.set_attn_implementation(attention.ATTENTION_NAME)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    masters = None
    if how.mesh.size == 1:
        model.to(how.mesh.device)  # type: ignore[arg-type]  # its stub takes no device
        if how.dtype != model.dtype:
            masters = {name: parameter.detach() for name, parameter in model.named_parameters()}
            model.to(how.dtype)  # type: ignore[arg-type]
    if how.dtype == torch.float32 and not how.compiled:  # the compiler does it itself
        fuse_norms(model)
    return LoadedModel(model, masters, silenced, tuple(sorted(info["unexpected_keys"])))


def _from_pretrained(
    path: str, config: PreTrainedConfig, dtype: torch.dtype, how: Spread
) -> tuple[PreTrainedModel, dict[str, list[Any]]]:
    """The model, and which tensors were missing, misshapen or without a place."""
    many = how.mesh.size > 1
    architecture: Any = AutoModelForCausalLM
    if many:
        found = _get_model_class(config, AutoModelForCausalLM._model_mapping)  # type: ignore[no-untyped-call]
        architecture = _spreading(found, how)
    model, info = architecture.from_pretrained(
        path,
        config=config,
        dtype=dtype,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are named in the answer, not in an error that points to a log
        output_loading_info=True,
        **({"distributed_config": DistributedConfig()} if many else {}),
    )
    if many:
        del model.config.distributed_config
    else:
        spread(model, how)
    return model, info


def _spreading(architecture: type[PreTrainedModel], how: Spread) -> type[PreTrainedModel]:
    """The architecture, spread over the ranks where transformers would do that itself: before the weights are read."""

    class NoMesh:
        """What transformers asks for its own meshes; `spread` has its own."""

        def get_mesh(self, dims: object) -> None:
            del dims

    def prepare_distribute_model(config: object, device_map: object = None) -> tuple[object, torch.device, NoMesh]:
        del device_map
        return config, torch.device("cpu") if how.offload else how.mesh.device, NoMesh()

    def maybe_distribute_model(model: PreTrainedModel, *_: object) -> PreTrainedModel:
        spread(model, how)
        return model

    return type(
        architecture.__name__,
        (architecture,),
        {
            "__module__": architecture.__module__,
            "prepare_distribute_model": staticmethod(prepare_distribute_model),
            "maybe_distribute_model": staticmethod(maybe_distribute_model),
        },
    )


def silence(config: PreTrainedConfig) -> dict[str, float]:
    """Set every dropout-like field of a configuration to zero, and return the old values.

    Also the fields that only `F.dropout` reads.
    """
    old: dict[str, float] = {}
    for prefix, part in _parts(config):
        for name, value in list(vars(part).items()):
            if _NOISE.search(name) and isinstance(value, int | float) and not isinstance(value, bool) and value != 0:
                old[prefix + name] = float(value)
                setattr(part, name, 0.0)
    return old


def restore_noise(config: PreTrainedConfig, silenced: dict[str, float]) -> None:
    """Undo `silence`: the saved model keeps the configuration that it came with."""
    for prefix, part in _parts(config):
        for name, value in silenced.items():
            if name.startswith(prefix) and "." not in name[len(prefix) :]:
                setattr(part, name[len(prefix) :], value)


def _parts(config: PreTrainedConfig) -> Iterator[tuple[str, PreTrainedConfig]]:
    yield "", config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield f"{name}.", value


def logit_transform(config: PreTrainedConfig) -> LogitTransform:
    """What the architecture does to its logits.

    The start-up check proves the reading right against the model itself.
    """
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere multiplies
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite divides
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    return LogitTransform(scale, None if cap is None else float(cap))


def _require_finite(model: PreTrainedModel, path: str) -> None:
    for name, parameter in model.named_parameters():
        part = local(parameter)
        if not torch.isfinite(part).all():
            count = int((~torch.isfinite(part)).sum())
            raise ModelError(
                f"{path}: {name} holds {count} non-finite numbers (NaN or Inf); "
                "the checkpoint is broken, take an earlier one"
            )


class _explained:
    """Turn what transformers raises about a path into a ModelError that names the path and the part."""

    def __init__(self, path: str, part: str) -> None:
        self.path, self.part = path, part

    def __enter__(self) -> None:
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._quiet.__exit__(None, None, None)
        if error is None or not isinstance(error, Exception) or isinstance(error, InputError):
            return
        raise ModelError(f"{self.path}: cannot read {self.part}: {_reason(self.path, error)}") from error


def _reason(path: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs code of its own, which is never run; use a model that transformers knows"
    folder = Path(path).expanduser()
    if folder.is_dir():
        weights = [file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".ckpt"}]
        if "safetensors" in text and weights:
            named = ", ".join(sorted(weights)[:3])
            return f"only pickled weights here ({named}), which are not opened; save as safetensors"
        return text
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        return "no such folder"
    return f"neither a folder nor a model of the hub that can be reached ({text})"
