"""What is kept of an archive comes back whole, or is refused."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpolish.errors import ModelError
from dpolish.nemo.sidecar import NemoSource, carry_sidecar, dtypes_of, read_sidecar, token_digest, write_sidecar
from tests.data.small_tokenizers import byte_level
from tests.nemo.small_weights import random_weights, stored

SOURCE = NemoSource(
    name="GPT-2B-001_bf16_tp1.nemo",
    generation="NeMo 1",
    layout="legacy-flat",
    tensor_parallel=1,
    pipeline_parallel=2,
    scale_positional_embedding=None,
    dtypes={
        "embedding.word_embeddings.weight": torch.bfloat16,
        "decoder.layers.*.mlp.linear_fc1.weight": torch.float32,
    },
    tokens="0" * 64,
    config=b"num_layers: 4 # to the letter\n",
    norms=b"\x00\x01",
    artifacts={"20537961_mt nlg+256k.model": b"\xff\x00"},
)


def test_comes_back(tmp_path: Path) -> None:
    write_sidecar(tmp_path, SOURCE)
    assert read_sidecar(tmp_path) == SOURCE
    assert SOURCE.dtype_of("decoder.layers.31.mlp.linear_fc1.weight") == torch.float32
    assert SOURCE.dtype_of("output_layer.weight") is None


def test_is_handed_on(tmp_path: Path) -> None:
    source, trained, other = (tmp_path / name for name in ("source", "trained", "other"))
    for folder in (source, trained, other):
        folder.mkdir()
    write_sidecar(source, SOURCE)
    assert carry_sidecar(source, trained)
    assert read_sidecar(trained) == SOURCE
    assert not carry_sidecar(other, trained)
    assert read_sidecar(other) is None


def change(folder: Path, **values: object) -> None:
    record = json.loads((folder / "nemo_source.json").read_text())
    (folder / "nemo_source.json").write_text(json.dumps({**record, **values}))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"format": 2}, "its format is 2, and 1 is understood"),
        ({"layout": 3}, "layout is 3, and not a text"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0, and not a positive number"),
        ({"tensor_parallel": True}, "tensor_parallel is True"),
        ({"scale_positional_embedding": 1}, "is 1, and not true, false or null"),
        ({"dtypes": {"x": "int8"}}, "int8 is no type of weights"),
        ({"dtypes": [1]}, "dtypes is not an object of texts"),
        ({"files": {}}, "it names no model_config.yaml"),
        ({"files": {"../../etc/passwd": "0"}}, "no name of a file there"),
        ({"files": {"/etc/passwd": "0"}}, "no name of a file there"),
        ({"files": {"..": "0"}}, "no name of a file there"),
        ({"files": {"absent": "0"}}, "nemo_source/absent is missing"),
        ({"files": {"model_config.yaml": "0"}}, "nemo_source/model_config.yaml is not what was kept"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path: Path, values: dict[str, object], reason: str) -> None:
    write_sidecar(tmp_path, SOURCE)
    change(tmp_path, **values)
    with pytest.raises(ModelError, match=r"cannot be used: .*Copy nemo_source\.json") as caught:
        read_sidecar(tmp_path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "nemo_source.json").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be used"):
        read_sidecar(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/x", ".", "", "a/x", "model_config.yaml", "norms.safetensors", "x" * 300])
def test_an_artifact_whose_name_leads_elsewhere_is_not_written(tmp_path: Path, name: str) -> None:
    hostile = replace(SOURCE, artifacts={name: b""})
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="has no name that a file can have here"):
        write_sidecar(tmp_path / "model", hostile)
    assert not (tmp_path / "x").exists()


def test_types_by_kind_of_tensor() -> None:
    weights = random_weights(dtype=torch.bfloat16)
    weights["decoder.final_layernorm.weight"] = weights["decoder.final_layernorm.weight"].float()
    kinds = dtypes_of(stored(weights))
    assert kinds["decoder.final_layernorm.weight"] == torch.float32
    assert kinds["decoder.layers.*.mlp.linear_fc2.weight"] == torch.bfloat16
    weights["decoder.layers.2.mlp.linear_fc2.weight"] = weights["decoder.layers.2.mlp.linear_fc2.weight"].float()
    with pytest.raises(ModelError, match=r"decoder\.layers\.2\.mlp\.linear_fc2\.weight is torch\.float32"):
        dtypes_of(stored(weights))


def test_tokens_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(byte_level())  # that one is shared
    tokenizer.save_pretrained(tmp_path / "a")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "b")
    tokenizer.add_tokens(["<extra_id_0>"])
    tokenizer.save_pretrained(tmp_path / "c")
    (tmp_path / "d").mkdir()
    first, again, other, none = (token_digest(tmp_path / name) for name in "abcd")
    assert first == again
    assert first != other
    assert none == ""
    (tmp_path / "d" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read"):
        token_digest(tmp_path / "d")
