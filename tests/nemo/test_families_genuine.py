"""Genuine files of NeMo: the logits that NeMo itself computed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from dpolish.nemo.checkpoint import open_checkpoint
from dpolish.nemo.families import from_hugging_face, hugging_face_config, rounded_norms, to_hugging_face

SHARED = Path(__file__).parents[3] / "shared" / "fixtures" / "nemo"
TOKENS = 500
"""Columns beyond are padding."""

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real archives beside the checkout, ../shared")


@pytest.mark.parametrize(
    ("archive", "reference", "scaled"),
    [
        ("legacy_gpt2b_style", "legacy_gpt2b_style", None),
        ("legacy_gpt2b_tp2pp2", "legacy_gpt2b_style", None),
        ("legacy_gpt345m_style", "legacy_gpt345m_style", None),
        ("mcore_gpt2b_style", "mcore_gpt2b_style", None),
        ("mcore_gpt2b_style_torchdist", "mcore_gpt2b_style_torchdist", None),
        ("mcore_gpt2b_tp2pp2_zarr", "mcore_gpt2b_style", None),
        ("mcore_nemotron_style", "mcore_nemotron_style", None),
        ("official_llama_gqa", "tiny_llama_gqa", False),  # the reference is that of the model before its conversion
    ],
)
def test_logits_are_nemos_own(archive: str, reference: str, scaled: bool | None, tmp_path: Path) -> None:
    with open_checkpoint(SHARED / f"{archive}.nemo", scale_positional_embedding=scaled) as checkpoint:
        config, weights, rows = checkpoint.config, checkpoint.weights, checkpoint.source.vocabulary_rows
        hf_config, hf = hugging_face_config(config, rows), to_hugging_face(config, weights)
        (tmp_path / "config.json").write_text(json.dumps(hf_config))
        save_file({name: entry.load() for name, entry in hf.items()}, tmp_path / "model.safetensors", {"format": "pt"})
        _, back = from_hugging_face(hf_config, hf, original=config, exact_norms=rounded_norms(config, weights))
        for name, entry in back.items():
            assert torch.equal(entry.load(), weights[name].load()), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with np.load(SHARED / f"{reference}.ref.npz") as stored:
        ids, want = torch.from_numpy(stored["input_ids"]).long(), torch.from_numpy(stored["logits"])
    with torch.no_grad():
        ours = model(ids).logits
    torch.testing.assert_close(ours[..., :TOKENS], want[..., :TOKENS], rtol=0, atol=1e-5)


def test_the_converters_mark_on_llama_is_followed_unless_overridden() -> None:
    with open_checkpoint(SHARED / "official_llama_gqa.nemo") as checkpoint:
        assert checkpoint.config.rope_scaling is not None
        assert "rotary_base 10000" in checkpoint.config.warnings[0]
