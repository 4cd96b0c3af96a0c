"""Every kind of checkpoint holds the same weights, whatever the toolkit that wrote it."""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import yaml

from dpolish.errors import ModelError
from dpolish.nemo.checkpoint import NemoCheckpoint, open_checkpoint
from tests.nemo.archives import (
    SHARED,
    Files,
    config,
    flat_files,
    pack,
    settings,
    stacks,
    torch_dist_files,
    unpack,
    zarr_files,
)
from tests.nemo.small_weights import HIDDEN, LAYERS, ROWS, loaded, random_weights

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real archives beside the checkout, ../shared")


Writer = Callable[..., Files]


def same(checkpoint: NemoCheckpoint, expected: Mapping[str, torch.Tensor]) -> bool:
    found = loaded(checkpoint.weights)
    assert list(found) == list(checkpoint.weights)
    assert found.keys() == expected.keys()
    for name, stored in checkpoint.weights.items():
        tensor = found[name]
        assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (stored.shape, stored.dtype, True), name
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
    return True


def read(files: Files, tmp_path: Path, **changes: object) -> NemoCheckpoint:
    return open_checkpoint(pack({**settings(**changes), **files}, tmp_path / "model.nemo"))


PLAIN = {"bias": True, "activation": "squared-relu"}
SIZES = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 4)]


@pytest.mark.parametrize(("tp", "pp"), SIZES)
@pytest.mark.parametrize("naming", ["legacy", "mcore-local", "mcore-te"])
def test_flat_gated(tmp_path: Path, naming: str, tp: int, pp: int) -> None:
    weights = random_weights(dtype=torch.bfloat16)
    prefix = "model.language_model." if naming == "legacy" else "model."
    files = flat_files(weights, naming, prefix=prefix, tp=tp, pp=pp)
    sizes = {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp}
    with read(files, tmp_path, mcore_gpt=naming != "legacy", **sizes) as checkpoint:
        assert same(checkpoint, weights)
        source = checkpoint.source
        assert (source.format, source.naming) == ("flat", naming)
        assert (source.tensor_parallel, source.pipeline_parallel, source.vocabulary_rows) == (tp, pp, ROWS)


@pytest.mark.parametrize(("tp", "pp"), SIZES)
@pytest.mark.parametrize("naming", ["legacy", "mcore-te"])
def test_flat_with_biases_and_no_gate(tmp_path: Path, naming: str, tp: int, pp: int) -> None:
    weights = random_weights(gated=False, bias=True, dtype=torch.float16)
    files = flat_files(weights, naming, tp=tp, pp=pp, gated=False)
    sizes = {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp}
    with read(files, tmp_path, mcore_gpt=naming != "legacy", **PLAIN, **sizes) as checkpoint:
        assert same(checkpoint, weights)


@pytest.mark.parametrize("tp", [1, 2])
def test_two_matrices_of_a_gated_layer(tmp_path: Path, tp: int) -> None:
    """`swiglu` of NeMo's own layers, unlike `fast-swiglu`, has two tensors: the gate first."""
    weights = random_weights()
    files = flat_files(weights, "legacy", tp=tp, split=True)
    changes = {"mcore_gpt": False, "activation": "swiglu", "tensor_model_parallel_size": tp}
    with read(files, tmp_path, **changes) as checkpoint:
        assert same(checkpoint, weights)


@pytest.mark.parametrize("tp", [1, 2])
def test_legacy_layers_of_transformer_engine(tmp_path: Path, tp: int) -> None:
    weights = random_weights(gated=False, bias=True)
    files = flat_files(weights, "legacy-te", prefix="model.language_model.", tp=tp, gated=False)
    changes = {
        "mcore_gpt": False, "transformer_engine": True, "bias": True, "activation": "gelu",
        "position_embedding_type": "none", "tensor_model_parallel_size": tp,
    }  # fmt: skip
    with read(files, tmp_path, **changes) as checkpoint:
        assert same(checkpoint, weights)
        assert checkpoint.source.naming == "legacy-te"
        assert checkpoint.config.activation == "gelu_pytorch_tanh"  # Transformer Engine's, fused or not
    for change in ({"activation": "squared-relu"}, {"position_embedding_type": "rope"}):
        with pytest.raises(ModelError, match="compute GELU and no rotary positions"):
            read(files, tmp_path, **{**changes, **change})


@pytest.mark.parametrize("tp", [1, 2])
def test_rows_of_the_first_megatron(tmp_path: Path, tp: int) -> None:
    """QKV lies as [3, heads, channels] in each rank, under `transformer` and `attention`."""
    weights = random_weights(gated=False, bias=True)
    stored = dict(weights)
    for name, tensor in weights.items():
        if "linear_qkv" in name and "norm" not in name:  # [4 heads, 3, 2 channels] as ranks × [3, heads, channels]
            by_rank = tensor.view(tp, 4 // tp, 3, 2, *tensor.shape[1:])
            stored[name] = by_rank.transpose(1, 2).reshape(tensor.shape)
    files = flat_files(stored, "legacy-first", prefix="model.language_model.", tp=tp, gated=False)
    changes = {"mcore_gpt": False, "megatron_legacy": True, **PLAIN, "tensor_model_parallel_size": tp}
    with read(files, tmp_path, **changes) as checkpoint:
        assert same(checkpoint, weights)


@pytest.mark.parametrize("naming", ["legacy", "mcore-te"])
def test_tied_copies_are_dropped(tmp_path: Path, naming: str) -> None:
    weights = random_weights(tied=True)
    files = flat_files(weights, naming, tp=2, pp=2, tied=True)
    changes = {"share_embeddings_and_output_weights": True, "tensor_model_parallel_size": 2}
    with read(files, tmp_path, pipeline_model_parallel_size=2, mcore_gpt=naming != "legacy", **changes) as checkpoint:
        assert same(checkpoint, weights)


@pytest.mark.parametrize("prefix", ["model.", "module.", "model.module.", ""])
def test_any_prefix(tmp_path: Path, prefix: str) -> None:
    weights = random_weights()
    with read(flat_files(weights, "mcore-te", prefix=prefix), tmp_path) as checkpoint:
        assert same(checkpoint, weights)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("write", [zarr_files, torch_dist_files])
def test_distributed(tmp_path: Path, write: Writer, gated: bool, tp: int) -> None:
    weights = random_weights(gated=gated, bias=not gated, dtype=torch.bfloat16)
    changes = {} if gated else PLAIN
    files = write(stacks(weights), tp=tp, gated=gated)
    with read(files, tmp_path, tensor_model_parallel_size=tp, **changes) as checkpoint:
        assert same(checkpoint, weights)
        assert checkpoint.source.format == ("zarr" if write is zarr_files else "torch_dist")


@pytest.mark.parametrize("write", [zarr_files, torch_dist_files])
def test_distributed_with_one_tensor_per_layer(tmp_path: Path, write: Writer) -> None:
    weights = random_weights()
    files = write({f"model.{name}": tensor for name, tensor in weights.items()})
    with read(files, tmp_path) as checkpoint:
        assert same(checkpoint, weights)


def test_distributed_with_the_names_of_local_layers(tmp_path: Path) -> None:
    """Before its version 0.5, Megatron-core did not rename the norms."""
    weights = random_weights()
    stacked = {
        name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.").replace(
            "mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."
        ): tensor
        for name, tensor in stacks(weights).items()
    }
    with read(zarr_files(stacked), tmp_path) as checkpoint:
        assert same(checkpoint, weights)


@pytest.mark.parametrize("write", [zarr_files, torch_dist_files])
def test_states_of_a_run_are_left_out(tmp_path: Path, write: Writer) -> None:
    weights = random_weights()
    tensors = {**stacks(weights), "optimizer.state.exp_avg.model.output_layer.weight": torch.ones(7)}
    with read(write(tensors), tmp_path) as checkpoint:
        assert same(checkpoint, weights)


def test_a_chunk_that_reaches_over_the_edge(tmp_path: Path) -> None:
    """zarr writes the last chunk of an axis whole, also where the axis ends before it."""
    weights = random_weights()
    files = zarr_files(stacks(weights))
    folder = "model_weights/model.embedding.word_embeddings.weight/"
    about = json.loads(files[f"{folder}.zarray"])
    about["chunks"] = [24, HIDDEN]
    whole = weights["embedding.word_embeddings.weight"]
    files[f"{folder}.zarray"] = json.dumps(about).encode()
    files[f"{folder}0.0"] = whole[:24].numpy().tobytes()
    files[f"{folder}1.0"] = torch.cat([whole[24:], torch.full((16, HIDDEN), 9.0)]).numpy().tobytes()
    with read(files, tmp_path) as checkpoint:
        assert same(checkpoint, weights)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed(tmp_path: Path, mode: str) -> None:
    weights = random_weights()
    files = {**settings(), **flat_files(weights, "mcore-te")}
    with open_checkpoint(pack(files, tmp_path / "model.nemo", mode)) as checkpoint:
        assert same(checkpoint, weights)


@pytest.mark.parametrize("write", [zarr_files, torch_dist_files])
def test_unpacked_folder(tmp_path: Path, write: Writer) -> None:
    weights = random_weights()
    folder = unpack({**settings(), **write(stacks(weights))}, tmp_path / "model")
    with open_checkpoint(folder) as checkpoint:
        assert same(checkpoint, weights)


def nemo2(**changes: object) -> Files:
    about = {
        "_target_": "nemo.collections.llm.gpt.model.base.GPTModel",
        "config": {
            "_target_": "nemo.collections.llm.gpt.model.base.GPTConfig",
            "num_layers": LAYERS,
            "hidden_size": HIDDEN,
            "ffn_hidden_size": 12,
            "num_attention_heads": 4,
            "seq_length": 16,
            "normalization": "LayerNorm",
            "layernorm_zero_centered_gamma": True,
            "gated_linear_unit": True,
            "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
            "add_bias_linear": False,
            "bias_activation_fusion": False,
            "position_embedding_type": "rope",
            "share_embeddings_and_output_weights": False,
            **changes,
        },
    }
    return {"context/model.yaml": yaml.safe_dump(about).encode(), "context/io.json": b"never read"}


@pytest.mark.parametrize("write", [zarr_files, torch_dist_files])
def test_nemo_2(tmp_path: Path, write: Writer) -> None:
    weights = random_weights(dtype=torch.bfloat16)
    files = {**nemo2(), **write(stacks(weights, "module."), folder="weights/")}
    files["context/nemo_tokenizer/tokenizer.json"] = b"{}"
    with open_checkpoint(unpack(files, tmp_path / "model")) as checkpoint:
        assert same(checkpoint, weights)
        assert checkpoint.source.generation == "NeMo 2"
        assert list(checkpoint.artifacts) == ["nemo_tokenizer/tokenizer.json"]
        assert checkpoint.artifact("nemo_tokenizer/tokenizer.json") == b"{}"


def test_artifacts(tmp_path: Path) -> None:
    files = flat_files(random_weights(), "mcore-te")
    with read({**files, "modelopt_state/x.model": b"other"}, tmp_path) as checkpoint:
        assert checkpoint.artifact("nemo:0123_tok.model") == b"pieces"
        assert checkpoint.artifact("0123_tok.model") == b"pieces"
        assert yaml.safe_load(checkpoint.config_file) == checkpoint.raw_config == config()
        for name in ("../secret", "/etc/passwd", "nemo:modelopt_state/x.model", "model_weights.ckpt", "absent"):
            with pytest.raises(ModelError, match=r"has no artifact .*; it has '0123_tok\.model'$"):
                checkpoint.artifact(name)


def test_other_folders_are_told_apart(tmp_path: Path) -> None:
    cases = {
        "is a Hugging Face model": {"config.json": b"{}"},
        "name that file": {"inner.nemo": b""},
        "name that folder": {"inner/model_config.yaml": b""},
        r"has no model_config\.yaml": {"other": b""},
    }
    for index, (message, files) in enumerate(cases.items()):
        with pytest.raises(ModelError, match=message):
            open_checkpoint(unpack(files, tmp_path / str(index)))
    with pytest.raises(ModelError, match=f"name the folder that it lies in, {tmp_path}"):
        open_checkpoint(unpack({"metadata.json": b"{}"}, tmp_path / "model_weights"))


def without(files: Files, *ends: str) -> Files:
    return {name: content for name, content in files.items() if not name.endswith(ends)}


def test_weights_that_do_not_fit_the_configuration(tmp_path: Path) -> None:
    weights = random_weights()
    flat, dist = flat_files(weights, "mcore-te"), zarr_files(stacks(weights))
    lacking = {name: tensor for name, tensor in weights.items() if "linear_proj" not in name}
    cases: list[tuple[str, Files, dict[str, object]]] = [
        (r"linear_qkv\.weight is \(24, 8\), and the configuration implies \(16, 8\)", flat, {"num_query_groups": 2}),
        ("lacks 'decoder.layers.0.self_attention.linear_proj.weight'", flat_files(lacking, "mcore-te"), {}),
        ("is one layer too many", flat, {"num_layers": 2}),
        ("has 4 layers, and the configuration says 8", dist, {"num_layers": 8}),
        ("'rm_head.weight'", flat_files({**weights, "rm_head.weight": torch.ones(1, 8)}, "mcore-te"), {}),
        ("is torch.float64; weights are", flat_files(random_weights(dtype=torch.float64), "mcore-te"), {}),
        ("has no token embedding", flat_files({"other.weight": torch.ones(1)}, "mcore-te"), {}),
        ("holds adapters alone", flat_files({"layers.0.adapter_layer.lora_x": torch.ones(1)}, "mcore-te"), {}),
        ("holds no weights", {}, {}),
        ("in two layouts", {**flat, **dist}, {}),
        ("in two layouts", {**flat, **flat_files(weights, "mcore-te", tp=2)}, {}),
        ("needs 4. It is not whole", without(dist, "linear_fc2.weight/2.0.0"), {}),
    ]
    for index, (message, files, changes) in enumerate(cases):
        (tmp_path / str(index)).mkdir()
        with pytest.raises(ModelError, match=message):
            read(files, tmp_path / str(index), **changes)


def test_ranks_that_do_not_fit_together(tmp_path: Path) -> None:
    weights = random_weights()
    four = flat_files(weights, "mcore-te", tp=2, pp=2)
    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    other = flat_files(random_weights(dtype=torch.bfloat16), "mcore-te", tp=2, pp=2)
    last, first = "tp_rank_01_pp_rank_001/model_weights.ckpt", "tp_rank_00_pp_rank_000/model_weights.ckpt"
    cases: list[tuple[str, Files, dict[str, object]]] = [
        ("has the files of 3 ranks", without(four, last), sizes),
        (
            "has the files of 4 ranks, and the configuration says 4 × 2",
            four,
            {**sizes, "tensor_model_parallel_size": 4},
        ),
        ("has the files of 2 ranks", {name: four[name] for name in four if "pp_rank_000" in name}, sizes),
        ("differ in shape or dtype", {**four, last: other[last]}, sizes),
        ("hold different tensors", {**four, last: four[first]}, sizes),
        ("virtual pipeline", four, {**sizes, "virtual_pipeline_model_parallel_size": 2}),
        ("virtual pipeline", flat_files(weights, "mcore-te", prefix="model0."), {}),
        ("whole layers of Transformer Engine", _full_te(weights), {}),
        ("do not divide into its 2 pipeline stages", four, {**sizes, "num_layers": 3}),
    ]
    for index, (message, files, changes) in enumerate(cases):
        (tmp_path / str(index)).mkdir()
        with pytest.raises(ModelError, match=message):
            read(files, tmp_path / str(index), **changes)


def _full_te(weights: Mapping[str, torch.Tensor]) -> Files:
    return flat_files(
        {name.replace("mlp.linear_fc1.", "layernorm_mlp.fc1."): weights[name] for name in weights}, "mcore-te"
    )


@needs_shared
def test_genuine_archives_hold_the_same_weights_in_every_layout() -> None:
    groups = [
        ["legacy_gpt2b_style", "legacy_gpt2b_tp2pp2"],
        ["mcore_gpt2b_style", "mcore_gpt2b_tp2pp2_zarr", "mcore_gpt2b_style_torchdist"],
    ]
    for first, *others in groups:
        with open_checkpoint(SHARED / f"{first}.nemo") as one:
            expected = loaded(one.weights)
        for other in others:
            with open_checkpoint(SHARED / f"{other}.nemo") as two:
                assert same(two, expected)


@needs_shared
@pytest.mark.parametrize("file", sorted(SHARED.glob("*.nemo")) if SHARED.is_dir() else [], ids=lambda file: file.stem)
def test_genuine_archives_are_read_whole(file: Path) -> None:
    with open_checkpoint(file) as checkpoint:
        heads = checkpoint.config.num_attention_heads
        groups, layers = checkpoint.config.num_query_groups, checkpoint.config.num_layers
        channels, hidden = 64 // heads, checkpoint.config.hidden_size
        assert checkpoint.weights["embedding.word_embeddings.weight"].shape == (checkpoint.source.vocabulary_rows, 64)
        for layer in range(layers):
            qkv = checkpoint.weights[f"decoder.layers.{layer}.self_attention.linear_qkv.weight"]
            assert qkv.shape == ((heads + 2 * groups) * channels, hidden)
        for name, stored in itertools.islice(checkpoint.weights.items(), 12):
            tensor = stored.load()
            assert (tensor.shape, tensor.dtype) == (stored.shape, stored.dtype), name
            assert tensor.isfinite().all(), name
        tokenizer = checkpoint.raw_config["tokenizer"]
        assert isinstance(tokenizer, dict)
        assert len(checkpoint.artifact(tokenizer["model"])) == 247392
