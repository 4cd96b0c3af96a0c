"""Answers of a model folder to prompts, in the template that the model was trained with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dpolish.data.templates import ChatTemplate, TemplateRecord, choose_template, load_template
from dpolish.model.load import load_tokenizer


@torch.no_grad()
def answers(folder: Path, prompts: Sequence[str], max_new_tokens: int = 48) -> list[str]:
    """One greedy answer to each prompt, up to the template's end of turn; special tokens are left out.

    A prompt is a user's message where the model has a chat template, what stands in front of the answer in the
    `prompt_template` of its SFT where it was trained with one, and the text itself where the model has neither.
    """
    tokenizer: Any = load_tokenizer(str(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    record, template = load_template(folder), choose_template(tokenizer)
    chat = template if record is None or record.prompt_template is None else None
    stop = (chat.stop.strip() or chat.stop) if chat is not None else ""
    stopping = {"stop_strings": [stop], "tokenizer": tokenizer} if stop else {}
    found = []
    for prompt in prompts:
        text = _text(prompt, tokenizer, chat, record)
        inputs: Any = tokenizer(text, return_tensors="pt", add_special_tokens=chat is None)
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **stopping)
        answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append((answer.partition(stop)[0] if stop else answer).strip())
    return found


def _text(prompt: str, tokenizer: Any, chat: ChatTemplate | None, record: TemplateRecord | None) -> str:
    """What the model sees before its answer. A chat template writes every special token itself."""
    if chat is not None:
        turns = [{"role": "user", "content": prompt}]
        text: str = tokenizer.apply_chat_template(
            turns, chat_template=chat.source, add_generation_prompt=True, tokenize=False
        )
        return text
    return record.prompt_before_answer(prompt) if record is not None and record.prompt_template is not None else prompt
