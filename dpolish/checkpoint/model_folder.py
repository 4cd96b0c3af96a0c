"""The final model as a Hugging Face folder that transformers, vLLM and lm-eval load as it is."""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpolish.data.templates import TemplateRecord, choose_template, save_template
from dpolish.errors import RunError
from dpolish.files import cannot_write, sync_directory
from dpolish.model.load import restore_noise, silence
from dpolish.parallel.apply import at_rest


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    silenced: Mapping[str, float],
    folder: Path,
    template: TemplateRecord | None = None,
    *,
    dtype: torch.dtype | None = None,
    first: bool = True,
) -> None:
    """Write weights (in `dtype`, the model's own by default), configuration and tokenizer to the new `folder`.

    `template` is what the rows were rendered with: it is recorded, the tokenizer gets it, and generation stops where a
    turn ends in it.
    Everything is written and made durable beside it, then renamed: `folder` is complete or not there. A model that is
    spread over ranks is gathered, a tensor at a time, by all of them together; the `first` one writes. Raises RunError,
    also for weights that are not finite.
    """
    dtype = dtype or model.dtype
    weights = gathered(model, dtype, keep=first)
    if not first:
        return
    if spoiled := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise RunError(
            f"{folder}: not saved, for {spoiled[0]} holds numbers that are not finite. Lower model.optim.lr."
        )
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    restore_noise(model.config, dict(silenced))
    try:
        unfinished.mkdir(parents=True)
        if template is not None:
            _adopt(template, model, tokenizer)
            save_template(unfinished, template)
        model.save_pretrained(unfinished, state_dict=weights)
        _say_dtype(unfinished / "config.json", dtype)
        tokenizer.save_pretrained(unfinished)
        _make_durable(unfinished)
        unfinished.rename(folder)
        sync_directory(folder.parent)
    except OSError as error:
        raise RunError(cannot_write(folder, error)) from error
    except RuntimeError as error:  # safetensors reports a full disk so
        raise RunError(f"{folder}: the model cannot be written: {error}. Free space and start again.") from error
    finally:
        silence(model.config)
        shutil.rmtree(unfinished, ignore_errors=True)


def _say_dtype(file: Path, dtype: torch.dtype) -> None:
    """Let config.json name the type that the weights were written in: FSDP keeps them in another."""
    config = json.loads(file.read_text(encoding="utf-8"))
    name = str(dtype).removeprefix("torch.")
    if config.get("dtype") != name:
        file.write_text(json.dumps({**config, "dtype": name}, indent=2) + "\n", encoding="utf-8")


def gathered(model: PreTrainedModel, dtype: torch.dtype, *, keep: bool) -> dict[str, Tensor]:
    """The state of a model by name, whole: of a spread one in the host's memory, on the ranks that keep it.

    Tied weights stay one tensor. Every rank calls it together.
    """
    at_rest(model)
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # two collectives for one are no fault here
    whole: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in whole:
            part = tensor.detach()
            full = part.full_tensor().to("cpu", dtype) if isinstance(part, DTensor) else part
            whole[id(tensor)] = full if keep else full.new_empty(0)
        state[name] = whole[id(tensor)]
    return state if keep else {}


def _adopt(template: TemplateRecord, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer its chat template, and generation the token that ends a turn, where that is one token."""
    if not template.source:
        return
    tokenizer.chat_template = template.source
    chosen = choose_template(tokenizer)
    stop = None if chosen is None else _end_token(tokenizer, chosen.stop.strip())
    if stop is not None and model.generation_config is not None:
        known = model.generation_config.eos_token_id
        ends = [known] if isinstance(known, int) else list(known or ())
        model.generation_config.eos_token_id = list(dict.fromkeys([*ends, stop]))


def _end_token(tokenizer: PreTrainedTokenizerBase, stop: str) -> int | None:
    """The id of a text that ends turns, where it is a token and nothing but a sign.

    Signs of NeMo's tokenizers (`<extra_id_1>`) are ordinary entries of the vocabulary.
    """
    known: dict[str, int] = tokenizer.get_vocab()
    sign = stop in tokenizer.get_added_vocab() or (stop.startswith("<") and stop.endswith(">"))
    return known.get(stop) if sign else None


def _make_durable(folder: Path) -> None:
    """Flush every file, and give each the mode that a plain open would: safetensors makes its files private."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    sync_directory(folder)
