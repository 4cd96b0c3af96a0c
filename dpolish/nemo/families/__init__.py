"""The same model under NeMo's and Hugging Face's names: one entry per family, read in both directions.

To add a family: a file beside this one that registers a `Family`, and its name in the last import here.
"""

from dpolish.nemo.families import gpt2, gpt_neox, llama, mistral, nemotron, qwen2, stablelm, starcoder2
from dpolish.nemo.families.convert import (
    choose_family,
    expected_shapes,
    from_hugging_face,
    hugging_face_config,
    rounded_norms,
    to_hugging_face,
)
from dpolish.nemo.families.family import FAMILIES, Family

__all__ = [
    "FAMILIES",
    "Family",
    "choose_family",
    "expected_shapes",
    "from_hugging_face",
    "gpt2",
    "gpt_neox",
    "hugging_face_config",
    "llama",
    "mistral",
    "nemotron",
    "qwen2",
    "rounded_norms",
    "stablelm",
    "starcoder2",
    "to_hugging_face",
]
