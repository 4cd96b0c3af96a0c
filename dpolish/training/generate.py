"""Answers of a model folder to prompts, as any user of transformers would get them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def answers(folder: Path, prompts: Sequence[str], max_new_tokens: int = 48) -> list[str]:
    """One greedy answer to each user message, through the model's chat template, special tokens left out."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    found = []
    for prompt in prompts:
        turns = [{"role": "user", "content": prompt}]
        inputs: Any = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        found.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return found
