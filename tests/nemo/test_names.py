"""What tensors of NeMo are called; whole models are in test_checkpoint."""

import pytest

from dpolish.nemo.names import bare, canonical, is_virtual, is_weight, naming_of

QKV, FC1 = "self_attention.linear_qkv.", "mlp.linear_fc1."


@pytest.mark.parametrize(
    ("name", "layer", "rest"),
    [
        ("model.language_model.encoder.layers.3.input_layernorm.weight", 3, f"{QKV}layer_norm_weight"),
        ("model.language_model.encoder.layers.3.self_attention.query_key_value.bias", 3, f"{QKV}bias"),
        ("model.language_model.encoder.layers.0.self_attention.dense.weight", 0, "self_attention.linear_proj.weight"),
        ("model.language_model.encoder.layers.0.post_attention_layernorm.bias", 0, f"{FC1}layer_norm_bias"),
        ("model.language_model.encoder.layers.0.mlp.dense_h_to_4h.weight", 0, f"{FC1}weight"),
        ("model.language_model.encoder.layers.0.mlp.dense_h_to_4h_2.weight", 0, "mlp.up.weight"),
        ("model.language_model.encoder.layers.0.mlp.dense_4h_to_h.weight", 0, "mlp.linear_fc2.weight"),
        ("language_model.transformer.layers.12.attention.query_key_value.weight", 12, f"{QKV}weight"),
        ("language_model.transformer.layers.12.attention.dense.weight", 12, "self_attention.linear_proj.weight"),
        ("language_model.transformer.final_layernorm.weight", None, "decoder.final_layernorm.weight"),
        ("model.language_model.encoder.final_layernorm.bias", None, "decoder.final_layernorm.bias"),
        ("encoder.layers.1.self_attention.layernorm_qkv.layer_norm_weight", 1, f"{QKV}layer_norm_weight"),
        ("encoder.layers.1.self_attention.layernorm_qkv.weight", 1, f"{QKV}weight"),
        ("encoder.layers.1.self_attention.proj.bias", 1, "self_attention.linear_proj.bias"),
        ("encoder.layers.1.layernorm_mlp.layer_norm_bias", 1, f"{FC1}layer_norm_bias"),
        ("encoder.layers.1.layernorm_mlp.fc1_weight", 1, f"{FC1}weight"),
        ("encoder.layers.1.layernorm_mlp.fc2_bias", 1, "mlp.linear_fc2.bias"),
        ("model.decoder.layers.7.pre_mlp_layernorm.weight", 7, f"{FC1}layer_norm_weight"),
        ("model.module.decoder.layers.7.mlp.linear_fc2.weight", 7, "mlp.linear_fc2.weight"),
        ("module.decoder.layers.mlp.linear_fc2.weight", None, "decoder.layers.mlp.linear_fc2.weight"),
        ("model.decoder.layers.input_layernorm.weight", None, f"decoder.layers.{QKV}layer_norm_weight"),
        ("model.decoder.final_layernorm.weight", None, "decoder.final_layernorm.weight"),
        ("model.embedding.word_embeddings.weight", None, "embedding.word_embeddings.weight"),
        ("model.word_embeddings.weight", None, "word_embeddings.weight"),
        ("model.language_model.output_layer.weight", None, "output_layer.weight"),
        ("model.rm_head.weight", None, "rm_head.weight"),
    ],
)
def test_canonical(name: str, layer: int | None, rest: str) -> None:
    assert canonical(name) == (layer, rest)


def test_what_is_a_weight() -> None:
    assert bare("module.model.language_model.x") == "x"
    for name in ("model.decoder.layers.0.mlp.linear_fc1.weight", "rm_head.weight", "model.word_embeddings.weight"):
        assert is_weight(name)
    for name in (
        "model.decoder.layers.mlp.linear_fc1._extra_state",
        "model.decoder.layers.mlp.linear_fc1._extra_state/shard_0_4",
        "model.language_model.rotary_pos_emb.inv_freq",
        "optimizer.state.exp_avg.model.output_layer.weight",
        "rng_state/shard_0.0_1.1",
    ):
        assert not is_weight(name)
    assert is_virtual("model1.language_model.x")
    assert not is_virtual("model.model1.x")


def test_namings() -> None:
    assert naming_of(["model.language_model.encoder.layers.0.mlp.dense_h_to_4h.weight"]) == "legacy"
    assert naming_of(["model.language_model.encoder.layers.0.layernorm_mlp.fc1_weight"]) == "legacy-te"
    assert naming_of(["model.decoder.layers.0.input_layernorm.weight"]) == "mcore-local"
    assert naming_of(
        ["model.decoder.layers.0.mlp.linear_fc1.layer_norm_weight", "model.decoder.final_layernorm.x"]
    ) == ("mcore-te")
