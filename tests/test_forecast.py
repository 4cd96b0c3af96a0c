"""Plans without weights, without rows, without the machine: exact where they can be, marked where they are assumed."""

import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import dpolish
from dpolish.api import plan
from dpolish.config.compose import Composed
from dpolish.errors import ConfigError, ModelError
from dpolish.facts import Parameters, weight_shapes
from dpolish.forecast import architecture_shapes, assumed_rows, target_of
from dpolish.planning import GPUS
from tests import models
from tests.tiny import Setup

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
CLUSTER = ("trainer.num_nodes=64", "trainer.devices=8", "model.tensor_model_parallel_size=8")


@pytest.fixture
def llama_70b(tmp_path: Path) -> Path:
    """A folder that holds config.json alone."""
    folder = tmp_path / "llama-70b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_70B))
    return folder


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def weightless(setup: Setup, tmp_path: Path) -> Path:
    """The tiny model's configuration and tokenizer."""
    folder = tmp_path / "weightless"
    shutil.copytree(setup.model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def composed(model: Path, *overrides: str, train: Sequence[Path] = (), root: str = "dpo") -> Composed:
    from dpolish.config.schema import ROOTS

    return dpolish.compose(
        overrides=list(overrides), root=ROOTS[root], model=str(model), train=list(map(str, train)), environ={}
    )


def numbers(lines: Sequence[str]) -> dict[str, str]:
    """The derived numbers by name, without how they are marked."""
    rows = (re.fullmatch(r"(\S.*?) {2,}(.+?) {2}\(\w+\)", line) for line in lines)
    return {row[1]: row[2] for row in rows if row is not None}


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.JUDGED)
def test_the_architecture_has_the_parameters_of_its_weights(name: str, tmp_path: Path) -> None:
    models.build(name).save_pretrained(tmp_path)
    saved = Parameters.of(weight_shapes(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    assert Parameters.of(architecture_shapes(tmp_path)) == saved


def test_a_70b_model_is_counted_exactly(llama_70b: Path) -> None:
    assert Parameters.of(architecture_shapes(llama_70b)).total == 70_553_706_496


def test_a_configuration_of_no_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="no causal language model can be made of it"):
        architecture_shapes(tmp_path)


def test_plans_without_weights_have_the_numbers_of_plans_with_them(setup: Setup, weightless: Path) -> None:
    options = ["trainer.accelerator=cpu", *setup.overrides]
    lines = [plan(composed(folder, *options, train=[setup.train])) for folder in (setup.model, weightless)]
    with_weights, without = map(numbers, lines)
    assert with_weights == without
    assert with_weights["training rows"] == "11"
    assert any("there are no weights here, and training needs them" in line for line in lines[1])


def test_training_without_weights_is_still_refused(setup: Setup, weightless: Path, tmp_path: Path) -> None:
    run = dpolish.compose(
        overrides=list(setup.overrides),
        model=str(weightless),
        train=[str(setup.train)],
        output=str(tmp_path / "run"),
        environ={},
    )
    with pytest.raises(ModelError, match="no weights; save the model as safetensors"):
        dpolish.train(run, say=lambda _: None)


def test_without_a_model_there_is_nothing_to_plan() -> None:
    with pytest.raises(ConfigError, match="no model to plan for: name a folder with --model"):
        plan(dpolish.compose(environ={}))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("weights", [True, False])
def test_a_model_whose_matrices_cannot_be_split_is_refused_in_the_plan(
    setup: Setup, tmp_path: Path, weights: bool
) -> None:
    model = tmp_path / "gpt2"
    shutil.copytree(setup.model, model, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=32, n_layer=1, n_head=2, n_positions=128)).save_pretrained(model)
    if not weights:
        (model / "model.safetensors").unlink()
    asked = ("trainer.devices=2", "trainer.accelerator=cpu", "model.tensor_model_parallel_size=2")
    with pytest.raises(ConfigError, match=r"no tensor-parallel plan for GPT2.*Set model\.tensor_model_parallel_size=1"):
        plan(composed(model, *setup.overrides, *asked, train=[] if not weights else [setup.train]))


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_assumed_pairs_fill_the_sequence() -> None:
    rows = assumed_rows(dpolish.compose(overrides=["model.global_batch_size=8"], environ={}).config, 1024)
    assert (rows.train.rows, rows.train.largest) == (800, 1536)
    assert rows.train.padded_tokens == 800 * 2 * 1024
    assert rows.train.scored_share == pytest.approx(2 / 3)  # two halves of a sequence, of three
    assert "(assumed)" in rows.told[0]


def test_assumed_demonstrations_and_a_limit_of_steps(weightless: Path) -> None:
    lines = plan(composed(weightless, "trainer.sft.max_steps=7", "trainer.accelerator=cpu", root="sft"))
    shown = numbers(lines)
    assert shown["optimizer steps"] == "7"
    assert any(line.startswith("training rows") and line.endswith("(assumed)") for line in lines)
    assert any("every row is taken to fill model.data.train_ds.max_seq_length=128" in line for line in lines)


# --- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("overrides", "gpu", "expected"),
    [
        ((), None, None),
        (("trainer.accelerator=cpu", "trainer.num_nodes=4"), None, None),
        (("trainer.accelerator=gpu",), None, "h100-80gb"),
        (("trainer.num_nodes=2",), None, "h100-80gb"),
        ((), "a100-40gb", "a100-40gb"),
        ((), "H200-141GB", "h200-141gb"),
    ],
)
def test_which_machine_is_planned_for(overrides: tuple[str, ...], gpu: str | None, expected: str | None) -> None:
    target = target_of(dpolish.compose(overrides=list(overrides), environ={}).config, gpu)
    assert target.gpu == (None if expected is None else GPUS[expected])
    assert target.machine.device == ("cpu" if expected is None else "cuda")


@pytest.mark.usefixtures("no_gpu")
def test_ranks_of_a_node() -> None:
    def devices(*overrides: str, gpu: str | None = None) -> int:
        return target_of(dpolish.compose(overrides=list(overrides), environ={}).config, gpu).machine.devices

    assert devices(gpu="h100-80gb") == 1
    assert devices("trainer.devices=auto", gpu="h100-80gb") == 8
    assert devices("trainer.devices=[0,2]", gpu="h100-80gb") == 2
    assert devices("trainer.devices=4", "trainer.accelerator=cpu") == 4


def test_a_gpu_that_is_not_known_or_contradicts() -> None:
    with pytest.raises(ConfigError, match=r"unknown GPU 'h100'.* Known: a100-40gb, "):
        target_of(dpolish.compose(environ={}).config, "h100")
    with pytest.raises(ConfigError, match=r"--gpu h100-80gb and trainer\.accelerator=cpu contradict each other"):
        target_of(dpolish.compose(overrides=["trainer.accelerator=cpu"], environ={}).config, "h100-80gb")


@pytest.mark.usefixtures("no_gpu")
def test_a_70b_model_on_512_ranks_in_under_a_minute(llama_70b: Path) -> None:
    start = time.process_time()
    lines = plan(composed(llama_70b, *CLUSTER))
    assert time.process_time() - start < 60
    text = "\n".join(lines)
    assert "planned for 64 nodes of 8 × h100-80gb (there is no GPU here)" in text
    assert "70,553,706,496 parameters" in text
    assert numbers(lines)["ranks"] == "64 nodes × 8 ranks = 1 copy × 64 FSDP shards × 8 tensor-parallel"
    assert "GB of 84.93 GB on h100-80gb: does not fit" in text
    assert "the nearest layout that fits: model.sequence_parallel=true" in text
    assert "all-gather" in text
    assert "assumed for h100-80gb: 40% of 989 TFLOP/s" in text
    fitting = "\n".join(plan(composed(llama_70b, *CLUSTER, "model.sequence_parallel=true")))
    assert "GB of 84.93 GB on h100-80gb: fits" in fitting


@pytest.mark.usefixtures("no_gpu")
def test_a_layout_that_cannot_be_is_refused_with_the_nearest_that_fits(llama_70b: Path) -> None:
    asked = ("trainer.num_nodes=8", "trainer.devices=8", "model.tensor_model_parallel_size=5")
    with pytest.raises(ConfigError, match=r"parallel_size=5 does not divide the 64 ranks") as caught:
        plan(composed(llama_70b, *asked))
    _, _, changes = str(caught.value).partition("the nearest layout that fits: ")
    overrides = changes.partition("  (")[0].split()
    lines = plan(composed(llama_70b, *asked, *overrides))
    assert any(line.endswith("on h100-80gb: fits") for line in lines)


def test_ranks_of_this_machine_are_planned_for_without_starting_them(setup: Setup) -> None:
    lines = plan(composed(setup.model, *setup.overrides, "trainer.devices=2", train=[setup.train]))
    assert numbers(lines)["ranks"] == "2 ranks = 2 copies × 1 FSDP shards × 1 tensor-parallel"
    assert any(line.lstrip().startswith("all-reduce") and "gradients between copies" in line for line in lines)
