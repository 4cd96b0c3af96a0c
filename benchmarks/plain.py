"""The loss of some rows computed plainly: the model as transformers has it, padded rows, all logits, float32.

The softmax alone is summed in float64. A float32 sum over a large vocabulary is off by as much as all else together,
and always to the same side; here it would be taken for an error of the sides.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

_AT_ONCE = 2
"""Rows in one forward pass: logits of more fill the memory."""
_IGNORED = -100


def plain_loss(folder: Path, rows: Sequence[tuple[list[int], list[int]]]) -> float:
    """Mean negative log-likelihood of the trained tokens of all (ids, trained) rows."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    total = 0.0
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        width = max(len(ids) for ids, _ in part)
        tokens, mask, labels = (torch.full((len(part), width), fill) for fill in (0, 0, _IGNORED))
        for row, (ids, trained) in enumerate(part):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
            labels[row, : len(ids)] = torch.where(torch.tensor(trained).bool(), torch.tensor(ids), _IGNORED)
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
        scored = labels[:, 1:] != _IGNORED
        total += cross_entropy(logits[scored].double(), labels[:, 1:][scored], reduction="sum").item()
    return total / sum(sum(trained) for _, trained in rows)
