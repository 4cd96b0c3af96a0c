"""Answers of a model folder to prompts, in the template that the model was trained with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dpolish.data.templates import ChatTemplate, TemplateRecord, choose_template, load_template
from dpolish.errors import ModelError
from dpolish.model.load import load_tokenizer


@torch.no_grad()
def answers(folder: Path, prompts: Sequence[str], max_new_tokens: int = 48) -> list[str]:
    """One greedy answer to each user message, up to the template's end of turn; special tokens are left out.

    A model that was fine-tuned on prompt-response rows gets each prompt in its `prompt_template`. Raises ModelError.
    """
    tokenizer: Any = load_tokenizer(str(folder))
    record = load_template(folder)
    template = choose_template(tokenizer, None, None)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    found = []
    for prompt in prompts:
        inputs: Any = tokenizer(_text(prompt, tokenizer, template, record), return_tensors="pt", **_literally(record))
        stop = {"stop_strings": [template.stop], "tokenizer": tokenizer} if template and template.stop else {}
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **stop)
        answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        if template and template.stop:
            answer = answer.partition(template.stop)[0]
        found.append(answer.strip())
    return found


def _text(prompt: str, tokenizer: Any, template: ChatTemplate | None, record: TemplateRecord | None) -> str:
    """What the model sees before its answer."""
    if record is not None and record.prompt_template is not None:
        return record.prompt_before_answer(prompt)
    if template is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: the model has no chat template, so it is not known how to ask it something: "
            "put chat_template.jinja into its folder"
        )
    turns = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(
        turns, chat_template=template.source, add_generation_prompt=True, tokenize=False
    )
    return text


def _literally(record: TemplateRecord | None) -> dict[str, bool]:
    """A chat template writes every special token itself."""
    return {} if record is not None and record.prompt_template is not None else {"add_special_tokens": False}
