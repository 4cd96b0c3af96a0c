"""Conversions lose no bit, in any direction, layout and sharding; and what cannot be done is refused in one message."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpolish.errors import ConfigError, ModelError
from dpolish.nemo.checkpoint import open_checkpoint
from dpolish.nemo.convert import ExportChoices, ImportChoices, convert
from dpolish.nemo.safetensors_shards import DEFAULT_SHARD_BYTES
from dpolish.nemo.sidecar import carry_sidecar, read_sidecar, write_sidecar
from dpolish.nemo.write.target import LAYOUTS, LayoutName
from tests.data.small_tokenizers import byte_level
from tests.nemo.archives import stacks, torch_dist_files, unpack
from tests.nemo.small_weights import HIDDEN, loaded, random_weights
from tests.nemo.test_checkpoint import nemo2
from tests.nemo.tiny_hugging_face import LEGACY_LACKS, MODELS, assert_same_tensors, save_tiny, tensors_of

SHARED = Path(__file__).parents[3] / "shared" / "fixtures" / "nemo"
GENUINE = sorted(SHARED.glob("*.nemo"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real archives beside the checkout, ../shared")
TEXT = "Which year was it? 1215. Das Café öffnet, 東京は晴れ 🙂\n\n<extra_id_0>\tx"
RANKS = (1, 2, 4)


def run(
    source: Path,
    destination: Path,
    *,
    layout: LayoutName | None = None,
    tp: int | None = None,
    pp: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    choices: ImportChoices | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[str]:
    """Convert, and what was said."""
    said: list[str] = []
    exported = ExportChoices(layout, tp, pp, dtype)
    convert(str(source), destination, choices, exported, shard_bytes=shard_bytes, overwrite=overwrite, say=said.append)
    return said


def config_of(archive: Path) -> dict[str, object]:
    with open_checkpoint(archive) as checkpoint:
        return checkpoint.raw_config


# --- from Hugging Face and back ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each tiny model, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("models")

    class Made(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = save_tiny(name, folder / name)
            return self[name]

    return Made()


def there_and_back(source: Path, folder: Path, layout: LayoutName, tp: int, pp: int) -> None:
    run(source, folder / "x.nemo", layout=layout, tp=tp, pp=pp)
    raw = config_of(folder / "x.nemo")
    assert (raw["tensor_model_parallel_size"], raw["pipeline_model_parallel_size"]) == (tp, pp)
    run(folder / "x.nemo", folder / "again")
    assert_same_tensors(tensors_of(folder / "again"), tensors_of(source))
    mine, theirs = (AutoTokenizer.from_pretrained(path) for path in (folder / "again", source))
    assert mine(TEXT).input_ids == theirs(TEXT).input_ids


CASES = [(name, layout) for name in MODELS for layout in LAYOUTS if not (layout == "legacy" and name in LEGACY_LACKS)]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_every_family_and_layout(models: dict[str, Path], tmp_path: Path, name: str, layout: LayoutName) -> None:
    there_and_back(models[name], tmp_path, layout, 2, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), list(product(RANKS, RANKS)))
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_every_sharding(
    models: dict[str, Path], tmp_path: Path, name: str, layout: LayoutName, tp: int, pp: int
) -> None:
    there_and_back(models[name], tmp_path, layout, tp, pp)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["stablelm", "gpt2"])
def test_narrow_types(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    there_and_back(save_tiny(name, tmp_path / "model", dtype=dtype), tmp_path, "mcore-zarr", 1, 1)
    assert config_of(tmp_path / "x.nemo")["precision"] == ("bf16" if dtype == torch.bfloat16 else 16)


def test_the_model_that_comes_back_computes_the_same(models: dict[str, Path], tmp_path: Path) -> None:
    there_and_back(models["llama"], tmp_path, "mcore-torch-dist", 4, 2)
    ids = torch.arange(24).reshape(2, 12)
    logits = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
        for path in (models["llama"], tmp_path / "again")
    ]
    assert torch.equal(*logits)


def test_shards_and_index(models: dict[str, Path], tmp_path: Path) -> None:
    run(models["llama"], tmp_path / "x.nemo")
    run(tmp_path / "x.nemo", tmp_path / "again", shard_bytes=20_000)
    assert len(list((tmp_path / "again").glob("model-*-of-*.safetensors"))) > 3
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(models["llama"]))


def test_equal_input_gives_equal_archives(models: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a.nemo", "b.nemo"):
        run(models["stablelm"], tmp_path / name, layout="legacy", tp=2)
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()


def test_added_rows_are_zeros_and_go_again(models: dict[str, Path], tmp_path: Path) -> None:
    rows = tensors_of(models["llama"])["model.embed_tokens.weight"].shape[0]
    run(models["llama"], tmp_path / "x.nemo", tp=4)
    with open_checkpoint(tmp_path / "x.nemo") as checkpoint:
        head = checkpoint.weights["output_layer.weight"].load()
        assert head.shape[0] % 4 == 0
        assert head.shape[0] == checkpoint.config.padded_vocab_size(rows, 4)
        assert checkpoint.raw_config["dpolish"] == {
            "hugging_face": "llama",
            "vocab_size": rows,
            **{"tokenizer": checkpoint.raw_config["dpolish"]["tokenizer"]},  # type: ignore[index]
        }
    assert not head[rows:].any()


# --- from .nemo and back ----------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("source", GENUINE, ids=lambda path: path.stem)
def test_a_genuine_archive_comes_back(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "first")
    run(tmp_path / "first", tmp_path / "x.nemo")
    run(tmp_path / "x.nemo", tmp_path / "second")
    assert_same_tensors(tensors_of(tmp_path / "second"), tensors_of(tmp_path / "first"))
    with open_checkpoint(source) as original, open_checkpoint(tmp_path / "x.nemo") as again:
        assert_same_tensors(loaded(again.weights), loaded(original.weights))
        assert again.source == original.source
        dist = {"dist_ckpt_format": original.source.format} if original.source.format != "flat" else {}
        assert again.raw_config == {**original.raw_config, **dist}
        assert again.artifacts == original.artifacts
        assert all(again.artifact(name) == original.artifact(name) for name in original.artifacts)
        if again.raw_config == original.raw_config:
            assert again.config_file == original.config_file  # to the letter, comments and all
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("first", "second")]
    assert tokenizers[0](TEXT).input_ids == tokenizers[1](TEXT).input_ids


@needs_shared
@pytest.mark.parametrize(("layout", "tp", "pp"), [("mcore-zarr", 2, 1), ("mcore-torch-dist", 1, 4), ("legacy", 4, 2)])
@pytest.mark.parametrize("name", ["legacy_gpt2b_tp2pp2", "legacy_gpt345m_style", "mcore_gpt2b_style_torchdist"])
def test_another_layout_is_the_same_model(name: str, layout: LayoutName, tp: int, pp: int, tmp_path: Path) -> None:
    source = SHARED / f"{name}.nemo"
    run(source, tmp_path / "x.nemo", layout=layout, tp=tp, pp=pp)
    with open_checkpoint(source) as original, open_checkpoint(tmp_path / "x.nemo") as again:
        assert_same_tensors(loaded(again.weights), loaded(original.weights))
        assert again.config == original.config
        assert (again.source.tensor_parallel, again.source.pipeline_parallel) == (tp, pp)
        assert again.config.mcore_gpt == (layout != "legacy")
        assert again.raw_config["transformer_engine"] is (layout != "legacy" and not original.config.mcore_gpt)
        kept = original.raw_config["optim"], original.raw_config["tokenizer"], original.raw_config["data"]
        assert kept == tuple(again.raw_config[key] for key in ("optim", "tokenizer", "data"))


@needs_shared
def test_the_tutorials_step_makes_an_archive_that_satisfies_nemo(tmp_path: Path) -> None:
    run(SHARED / "legacy_gpt2b_style.nemo", tmp_path / "mcore.nemo")
    raw = config_of(tmp_path / "mcore.nemo")
    assert (raw["mcore_gpt"], raw["transformer_engine"], raw["dist_ckpt_format"]) == (True, True, "zarr")


@needs_shared
def test_an_override_at_import_stays(tmp_path: Path) -> None:
    source = SHARED / "official_llama_gqa.nemo"
    said = run(source, tmp_path / "plain", choices=ImportChoices(scale_positional_embedding=False))
    assert said == [f"{tmp_path / 'plain'}: written"]
    assert "rope_scaling" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    run(tmp_path / "plain", tmp_path / "x.nemo")
    assert config_of(tmp_path / "x.nemo")["scale_positional_embedding"] is False
    honoured = run(source, tmp_path / "honoured")
    assert any("scale_positional_embedding" in line for line in honoured)


@needs_shared
def test_after_training(tmp_path: Path) -> None:
    """Weights that moved, in float32, from an archive in bfloat16."""
    run(SHARED / "legacy_gpt2b_style.nemo", tmp_path / "bf16.nemo", layout="legacy", dtype=torch.bfloat16)
    run(tmp_path / "bf16.nemo", tmp_path / "model")
    trained = tmp_path / "trained"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(trained)
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(trained)
    assert carry_sidecar(tmp_path / "model", trained)
    said = run(trained, tmp_path / "trained.nemo")
    assert any("rounded from float32 to bfloat16" in line and "--dtype" in line for line in said)
    run(trained, tmp_path / "wide.nemo", dtype=torch.float32)
    assert config_of(tmp_path / "wide.nemo")["precision"] == 32
    gamma = model.model.layers[0].input_layernorm.weight.detach()
    with open_checkpoint(tmp_path / "wide.nemo") as wide, open_checkpoint(tmp_path / "trained.nemo") as narrow:
        name = "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"
        assert torch.equal(wide.weights[name].load(), gamma - 1)
        assert torch.equal(narrow.weights[name].load(), (gamma - 1).bfloat16())
        for core, tensor in wide.weights.items():
            assert torch.equal(narrow.weights[core].load(), tensor.load().bfloat16()), core


@needs_shared
def test_new_tokens_take_the_place_of_padding(tmp_path: Path) -> None:
    run(SHARED / "mcore_gpt2b_style.nemo", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["<extra_id_7>"])
    tokenizer.save_pretrained(tmp_path / "model")
    said = run(tmp_path / "model", tmp_path / "x.nemo")
    assert any("its tokenizer is not the one that came from 'mcore_gpt2b_style.nemo'" in line for line in said)
    run(tmp_path / "x.nemo", tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.convert_tokens_to_ids("<extra_id_7>") == tokenizer.convert_tokens_to_ids("<extra_id_7>") == 500
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "model"))


@needs_shared
def test_a_model_that_is_another_one_is_refused(tmp_path: Path) -> None:
    run(SHARED / "mcore_gpt2b_style.nemo", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "gelu"}))
    with pytest.raises(ModelError, match=r"activation was 'silu' and is 'gelu'.*\n.*remove nemo_source.json"):
        run(tmp_path / "model", tmp_path / "x.nemo")
    assert not (tmp_path / "x.nemo").exists()


@needs_shared
def test_kept_norms_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    run(SHARED / "mcore_gpt2b_style.nemo", tmp_path / "model")
    kept = read_sidecar(tmp_path / "model")
    assert kept is not None
    (tmp_path / "model" / "nemo_source.json").unlink()
    shutil.rmtree(tmp_path / "model" / "nemo_source")
    write_sidecar(tmp_path / "model", replace(kept, norms=b"nothing of the kind"))
    with pytest.raises(ModelError, match=r"(?s)model: .*remove nemo_source\.json"):
        run(tmp_path / "model", tmp_path / "x.nemo")


@needs_shared
def test_resized_embeddings_are_followed(tmp_path: Path) -> None:
    run(SHARED / "mcore_gpt2b_style.nemo", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    model.resize_token_embeddings(640, mean_resizing=False)
    model.save_pretrained(tmp_path / "model")
    run(tmp_path / "model", tmp_path / "x.nemo")
    with open_checkpoint(tmp_path / "x.nemo") as checkpoint:
        assert checkpoint.source.vocabulary_rows == checkpoint.config.padded_vocab_size(500, 1) == 640
    run(tmp_path / "x.nemo", tmp_path / "again")
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "model"))


# --- from NeMo 2 ------------------------------------------------------------------------------------------------------


def nemo2_folder(folder: Path, **changes: object) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint of NeMo 2 with a Hugging Face tokenizer, and its weights."""
    weights = random_weights(dtype=torch.bfloat16)
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        weights[name] = torch.randn(512, HIDDEN).bfloat16()
    files = {**nemo2(**changes), **torch_dist_files(stacks(weights, "module."), folder="weights/")}
    unpack(files, folder)
    byte_level().save_pretrained(folder / "context" / "nemo_tokenizer")
    return folder, weights


def test_nemo_2_becomes_nemo_1_by_way_of_hugging_face(tmp_path: Path) -> None:
    source, weights = nemo2_folder(tmp_path / "nemo2")
    run(source, tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(TEXT).input_ids == byte_level()(TEXT).input_ids
    run(tmp_path / "model", tmp_path / "x.nemo")
    with open_checkpoint(tmp_path / "x.nemo") as checkpoint:
        assert_same_tensors(loaded(checkpoint.weights), weights)
        assert checkpoint.source.generation == "NeMo 1"
        assert checkpoint.source.format == "torch_dist"
    run(tmp_path / "x.nemo", tmp_path / "again")
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "model"))
    with pytest.raises(ModelError, match=r"is a checkpoint of NeMo 2.*Convert it to a Hugging Face folder"):
        run(source, tmp_path / "direct.nemo")


def test_nemo_2_without_a_tokenizer_wants_one(tmp_path: Path) -> None:
    source, _ = nemo2_folder(tmp_path / "nemo2")
    (source / "context" / "nemo_tokenizer").rename(tmp_path / "tokenizer")
    with pytest.raises(ModelError, match=r"nemo2: it has no tokenizer that is found.*--tokenizer"):
        run(source, tmp_path / "model")
    run(source, tmp_path / "model", choices=ImportChoices(tokenizer=tmp_path / "tokenizer"))
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(TEXT).input_ids == byte_level()(TEXT).input_ids


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout", "tp", "pp", "reason"),
    [
        ("llama", "mcore-zarr", 8, 1, "--tp 8: the model has 4 query groups; choose one of 1, 2, 4"),
        ("llama", "mcore-zarr", 1, 3, "--pp 3: the model has 4 layers; choose one of 1, 2, 4"),
        ("llama", "legacy", 1, 1, "4 key-value heads for 8 heads: the legacy layout has none; write an mcore layout"),
        ("qwen2", "legacy", 1, 1, "a bias on queries, keys and values alone"),
    ],
)
def test_what_nemo_could_not_load_is_not_written(
    models: dict[str, Path], tmp_path: Path, name: str, layout: LayoutName, tp: int, pp: int, reason: str
) -> None:
    with pytest.raises((ConfigError, ModelError)) as caught:
        run(models[name], tmp_path / "x.nemo", layout=layout, tp=tp, pp=pp)
    assert reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_choices_that_have_no_meaning_that_way(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be an archive: name it"):
        run(models["llama"], tmp_path / "x")
    with pytest.raises(ConfigError, match="--scale-positional-embedding is for reading"):
        run(models["llama"], tmp_path / "x.nemo", choices=ImportChoices(scale_positional_embedding=True))
    with pytest.raises(ConfigError, match="--shard-size is for writing a Hugging Face folder"):
        run(models["llama"], tmp_path / "x.nemo", shard_bytes=1)
    run(models["llama"], tmp_path / "x.nemo")
    with pytest.raises(ConfigError, match="--layout, --tp, --pp and --dtype are for writing"):
        run(tmp_path / "x.nemo", tmp_path / "y", tp=2)
    with pytest.raises(ConfigError, match="is what is converted"):
        run(tmp_path / "x.nemo", tmp_path / "x.nemo", overwrite=True)
    with pytest.raises(ConfigError, match=r"exists, and nothing is overwritten unasked"):
        run(models["llama"], tmp_path / "x.nemo")
    run(models["llama"], tmp_path / "x.nemo", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.nemo"]


def test_what_is_not_there_or_nothing_of_the_kind(tmp_path: Path) -> None:
    for source, reason in (("absent.nemo", "No such file"), ("./absent", "no such folder")):
        with pytest.raises(ModelError, match=reason):
            convert(str(tmp_path / source), tmp_path / "x.nemo", say=lambda _: None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json here"):
        run(tmp_path / "empty", tmp_path / "x.nemo")
    assert not (tmp_path / "x.nemo").exists()


def test_a_folder_without_a_tokenizer_names_one(models: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file(tensors_of(models["llama"]), bare / "model.safetensors")
    (bare / "config.json").write_bytes((models["llama"] / "config.json").read_bytes())
    with pytest.raises(ModelError, match="NeMo needs a tokenizer: add one, or name it with --tokenizer"):
        run(bare, tmp_path / "x.nemo")
    convert(str(bare), tmp_path / "x.nemo", tokenizer="some/tokenizer", say=lambda _: None)
    block = config_of(tmp_path / "x.nemo")["tokenizer"]
    assert yaml.safe_dump(block).startswith("delimiter: null\nlibrary: huggingface")
    with pytest.raises(ModelError, match=r"only the name of one: some/tokenizer.*--tokenizer"):
        run(tmp_path / "x.nemo", tmp_path / "again")
    run(tmp_path / "x.nemo", tmp_path / "again", choices=ImportChoices(tokenizer=models["llama"]))
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(bare))


def test_a_tokenizer_that_travels_runs_no_code(models: dict[str, Path], tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "source")
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["x.X", None]}}))
    run(source, tmp_path / "x.nemo")
    run(tmp_path / "x.nemo", tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "tokenizer_config.json").read_text()
    assert not [entry for entry in (tmp_path / "again").iterdir() if entry.name.startswith("tmp")]
