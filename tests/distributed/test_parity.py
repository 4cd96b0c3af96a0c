"""The same run on one rank and on several, however they are laid out: equal metrics, equal weights, one ordinary model.

Eleven rows in batches of four, five validation rows: some ranks have nothing to do in some batches.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from dpolish.layout import RankLayout
from dpolish.model.load import load_model
from dpolish.parallel.apply import Spread, at_rest
from dpolish.parallel.join import joined
from dpolish.parallel.mesh import Mesh
from dpolish.parallel.tensor import local
from dpolish.world import World
from tests import models, tiny
from tests.data.small_tokenizers import byte_level
from tests.distributed.ranks import end_ranks, run_ranks

TIMES = ("step_time", "validation_step_time", "tokens_per_second", "pairs_per_second", "examples_per_second")
Records = list[tuple[int, str, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class Layout:
    """How many ranks, and how they share the work."""

    ranks: int
    tensor: int = 1
    strategy: str = "full"
    sequence: bool = False
    nodes: int = 1
    context: int = 1
    expert: int = 1

    @property
    def overrides(self) -> tuple[str, ...]:
        """As the command line has it."""
        return (
            f"trainer.devices={self.ranks // self.nodes}",
            f"trainer.num_nodes={self.nodes}",
            f"model.tensor_model_parallel_size={self.tensor}",
            f"model.sequence_parallel={self.sequence}",
            f"model.context_parallel_size={self.context}",
            f"model.expert_model_parallel_size={self.expert}",
            f"model.fsdp_sharding_strategy={self.strategy}",
        )


LAYOUTS = {
    "2 data-parallel": Layout(2),
    "2 copies": Layout(2, strategy="replicate"),
    "2 tensor-parallel": Layout(2, tensor=2),
    "2 tensor-parallel, sequence": Layout(2, tensor=2, sequence=True),
    "2 data × 2 tensor": Layout(4, tensor=2),
    "2 copies × 2 tensor, sequence": Layout(4, tensor=2, strategy="replicate", sequence=True),
    "2 context-parallel": Layout(2, context=2),
    "2 data × 2 context": Layout(4, context=2),
    "HSDP 2 × 2": Layout(4, strategy="hybrid", nodes=2),
}
MODELS: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen3": {"head_dim": 8, "attention_bias": False},
    "qwen3_tied": {"head_dim": 8, "tie_word_embeddings": True},
}


def build(name: str, folder: Path) -> Path:
    """A tiny model folder, with the tokenizer that fits."""
    if name == "llama":
        return tiny.save_model(folder)
    tokenizer = byte_level()
    model = models.build("qwen3", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.div_(1.5)  # gain 1: a larger one multiplies what rounding adds from step to step
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def begun_alike(rows: Sequence[tiny.Row]) -> list[tiny.Row]:
    """Prompts that begin alike, but for every fourth; one is another's beginning, and the last is the second again."""
    head = " ".join(tiny.WORDS[:8])
    begun = [{**row, "prompt": f"{head} {row['prompt']}"} if index % 4 else row for index, row in enumerate(rows)]
    begun[3] = {**begun[3], "prompt": f"{begun[1]['prompt']} {rows[3]['prompt']}"}
    begun[-1] = {**begun[-1], "prompt": begun[1]["prompt"]}
    return begun


def train(setup: tiny.Setup, output: Path, *overrides: str) -> Records:
    """One rank's records, without what the clock says."""
    logging.disable_progress_bar()
    found = setup.run(output, *overrides).records
    return [(r.step, r.split, {k: v for k, v in r.metrics.items() if k not in TIMES}) for r in found]


@dataclass(slots=True)
class Alone:
    """A run on one rank that shares no prompt, which the others must equal."""

    setup: tiny.Setup
    records: Records
    weights: Mapping[str, Tensor]
    folder: Path
    count: int = field(default=0)

    def output(self) -> Path:
        """A new run directory."""
        self.count += 1
        return self.folder / f"many{self.count}"


@pytest.fixture(scope="module", params=MODELS)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp(request.param)
    setup = tiny.Setup(
        build(request.param, folder / "model"),
        tiny.write_rows(folder / "train.jsonl", begun_alike(tiny.rows(11))),
        tiny.write_rows(folder / "validation.jsonl", begun_alike(tiny.rows(5, seed=1))),
    )
    (records,) = run_ranks(1, train, setup, folder / "one", "model.prefix_sharing=off")
    return Alone(setup, records, load_file(folder / "one/model/model.safetensors"), folder)


def require_equal(records: Records, expected: Records, *, rewards: float = 1e-5) -> None:
    """Losses and the like to 1e-5, relative where they are large; rewards absolutely."""
    assert [(step, split) for step, split, _ in records] == [(step, split) for step, split, _ in expected]
    for (step, split, ours), (_, _, theirs) in zip(records, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            limit = rewards * (1.0 if name.startswith("rewards") else max(1.0, abs(value)))
            assert ours[name] == pytest.approx(value, rel=0, abs=limit), f"{name} of {split} {step}"


def require_equal_weights(folder: Path, expected: Mapping[str, Tensor], limit: float = 1e-4) -> None:
    """The saved model has the same tensors; key biases, whose true gradient is zero, are left out."""
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, theirs in expected.items():
        assert weights[name].dtype == theirs.dtype
        if not name.endswith("k_proj.bias"):
            assert float((weights[name] - theirs).norm() / theirs.norm()) < limit, name


@pytest.mark.parametrize("name", LAYOUTS)
def test_many_ranks_train_as_one(alone: Alone, name: str) -> None:
    layout, output = LAYOUTS[name], alone.output()
    found = run_ranks(layout.ranks, train, alone.setup, output, *layout.overrides, nodes=layout.nodes)
    assert all(records == found[0] for records in found), "every rank knows the same numbers"
    require_equal(found[0], alone.records)
    require_equal_weights(output / "model", alone.weights)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tiny.Setup:
    folder = tmp_path_factory.mktemp("llama")
    return tiny.Setup(
        tiny.save_model(folder / "model"),
        tiny.write_rows(folder / "train.jsonl", tiny.rows(11)),
        tiny.write_rows(folder / "validation.jsonl", tiny.rows(5, seed=1)),
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.data.packing=false", "model.micro_batch_size=1"),
        ("model.data.tokens_per_micro_batch=40",),
        ("model.activations_checkpoint_granularity=full",),
        ("model.dpo.sft_loss_weight=0.5", "model.dpo.preference_average_log_probs=true", "model.global_batch_size=3"),
        ("trainer.dpo.gradient_clip_val=0.05",),
        ("model.prefix_sharing=off",),
        ("model.fsdp_cpu_offload=true",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_many_ranks_train_as_one_however_rows_are_packed(
    llama: tiny.Setup, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    alone = [override for override in overrides if "offload" not in override]  # it is FSDP's
    (expected,) = run_ranks(1, train, llama, tmp_path / "one", *alone)
    layout = Layout(4, tensor=2, sequence=True)
    found = run_ranks(4, train, llama, tmp_path / "many", *overrides, *layout.overrides)
    require_equal(found[0], expected)
    require_equal_weights(tmp_path / "many/model", load_file(tmp_path / "one/model/model.safetensors"))


def test_tensor_and_context_parallelism_share_the_heads(tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "train.jsonl", tiny.rows(11))
    setup = tiny.Setup(tiny.save_model(tmp_path / "model", num_key_value_heads=4), rows, rows)
    (expected,) = run_ranks(1, train, setup, tmp_path / "one")
    layout = Layout(4, tensor=2, context=2, sequence=True)
    found = run_ranks(4, train, setup, tmp_path / "many", *layout.overrides)
    require_equal(found[0], expected, rewards=5e-5)  # another micro-batch size alone changes these by 1e-5 on one rank
    require_equal_weights(tmp_path / "many/model", load_file(tmp_path / "one/model/model.safetensors"))


def experts(folder: Path, name: str = "qwen3_moe", **overrides: object) -> tiny.Setup:
    """A mixture of four experts, of gain 1, with its tokenizer and rows."""
    tokenizer = byte_level()
    model = models.build(name, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.div_(1.5)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = tiny.write_rows(folder / "train.jsonl", tiny.rows(11))
    return tiny.Setup(folder / "model", rows, tiny.write_rows(folder / "validation.jsonl", tiny.rows(5, seed=1)))


def test_ranks_with_experts_of_their_own_train_as_one(tmp_path: Path) -> None:
    setup = experts(tmp_path)
    (expected,) = run_ranks(1, train, setup, tmp_path / "one")
    weights = load_file(tmp_path / "one/model/model.safetensors")
    layouts = {
        "two of their own": Layout(2, expert=2),
        "sharded": Layout(4, expert=2),
        "two copies": Layout(4, expert=2, strategy="replicate"),
        "none spread": Layout(2),
    }
    for name, layout in layouts.items():
        found = run_ranks(layout.ranks, train, setup, tmp_path / name, *layout.overrides)
        require_equal(found[0], expected)
        require_equal_weights(tmp_path / name / "model", weights)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("qwen3_moe", Layout(3)),  # 2, 2 and none, if they were dealt
        ("qwen3_moe", Layout(6, expert=2)),  # 2 for 3 ranks
        ("mixtral", Layout(3)),
        ("gpt_oss", Layout(3)),  # stacked in the checkpoint
    ],
    ids=["qwen3_moe", "of their own", "mixtral", "gpt_oss"],
)
def test_experts_that_do_not_go_round_are_cut(tmp_path: Path, name: str, layout: Layout) -> None:
    setup = experts(tmp_path, name, hidden_size=48)
    (expected,) = run_ranks(1, train, setup, tmp_path / "one")
    found = run_ranks(layout.ranks, train, setup, tmp_path / "many", *layout.overrides)
    # one rank's own packings differ by up to 1e-5 here: Adam's first update is the sign even of a gradient of rounding
    require_equal(found[0], expected, rewards=3e-5 if name == "gpt_oss" else 1e-5)
    require_equal_weights(tmp_path / "many/model", load_file(tmp_path / "one/model/model.safetensors"))


@pytest.mark.slow
def test_compiled_layers_under_fsdp(llama: tiny.Setup, tmp_path: Path) -> None:
    (expected,) = run_ranks(1, train, llama, tmp_path / "one")
    found = run_ranks(2, train, llama, tmp_path / "many", *Layout(2).overrides, "model.torch_compile=true")
    require_equal(found[0], expected)
    require_equal_weights(tmp_path / "many/model", load_file(tmp_path / "one/model/model.safetensors"))


def test_bfloat16_follows_float32(llama: tiny.Setup, tmp_path: Path) -> None:
    """bfloat16 layers under float32 weights, as on one rank; rounding differs with what is added where."""
    bf16 = ("trainer.precision=bf16",)
    (expected,) = run_ranks(1, train, llama, tmp_path / "one", *bf16)
    found = run_ranks(2, train, llama, tmp_path / "many", *bf16, *Layout(2).overrides)
    require_equal(found[0], expected, rewards=0.05)
    weights = load_file(tmp_path / "many/model/model.safetensors")
    one = load_file(tmp_path / "one/model/model.safetensors")
    assert '"dtype": "bfloat16"' in (tmp_path / "many/model/config.json").read_text()
    for name, weight in weights.items():
        assert weight.dtype == torch.bfloat16
        assert float((weight.float() - one[name].float()).norm() / one[name].float().norm()) < 0.02, name


def test_the_model_is_one_ordinary_folder(llama: tiny.Setup, tmp_path: Path) -> None:
    run_ranks(4, train, llama, tmp_path / "out", *Layout(4, tensor=2).overrides)
    folder = tmp_path / "out/model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(folder)("which year", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=3, do_sample=False).shape[1] >= tokens["input_ids"].shape[1]
    assert "distributed" not in (folder / "config.json").read_text()
    assert "FSDP" not in (folder / "config.json").read_text()
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["config.yaml", "environment.json", "metrics.jsonl", "model"], "one rank writes, once"


def test_the_reference_is_scored_by_all_and_kept_for_any_layout(llama: tiny.Setup, tmp_path: Path) -> None:
    assert run_ranks(2, count_scored, llama, tmp_path / "a", *Layout(2).overrides) == [16, 16]
    assert run_ranks(1, count_scored, llama, tmp_path / "b") == [0]
    assert run_ranks(2, count_scored, llama, tmp_path / "c", *Layout(2, tensor=2).overrides) == [0, 0]


def count_scored(setup: tiny.Setup, output: Path, *overrides: str) -> int:
    """Rows that a run had to score."""
    return setup.run(output, *overrides).num_reference_scored


@pytest.mark.parametrize(
    ("name", "overrides", "layout", "message"),
    [
        ("gpt2", {}, Layout(2, tensor=2), "transformers has no tensor-parallel plan for GPT2LMHeadModel"),
        ("mixtral", {}, Layout(2, tensor=2), "MixtralForCausalLM splits moe_tp_experts"),
        ("qwen3", {"num_key_value_heads": 1}, Layout(2, tensor=2), "does not divide the 1 key/value heads"),
        ("qwen3", {"num_key_value_heads": 1}, Layout(2, context=2), "does not divide the 1 key/value heads"),
        ("llama", {}, Layout(2, expert=2), "no plan for experts of LlamaForCausalLM"),
        ("qwen3_moe", {"num_experts": 3}, Layout(2, expert=2), "does not divide the 3 experts"),
        ("qwen3_moe", {}, Layout(2, expert=4), "does not divide the 2 ranks"),
        (
            "mixtral",
            {"num_local_experts": 1, "num_experts_per_tok": 1, "intermediate_size": 97},
            Layout(2),
            "1 experts cannot be sharded over 2 ranks",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_before_training(
    tmp_path: Path, name: str, overrides: dict[str, object], layout: Layout, message: str
) -> None:
    tokenizer = byte_level()
    tokenizer.save_pretrained(tmp_path / "model")
    models.build(name, vocab_size=len(tokenizer), **overrides).save_pretrained(tmp_path / "model")
    rows = tiny.write_rows(tmp_path / "train.jsonl", tiny.rows(4))
    setup = tiny.Setup(tmp_path / "model", rows, rows)
    ended = end_ranks(tmp_path, 2, train, setup, tmp_path / "out", *layout.overrides)
    assert [rank.code for rank in ended] == [2, 2]
    said = "".join(rank.err for rank in ended)
    assert message in said
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def own_share(folder: Path, tensor: int) -> tuple[int, int]:
    """Numbers of a model that this rank holds once it is loaded, and numbers of the whole model."""
    logging.disable_progress_bar()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    with joined(World(rank, size, rank, size, origin="torchrun"), device, 60.0):
        mesh = Mesh.joined(RankLayout(1, size, tensor, size // tensor), device)
        model = load_model(str(folder), Spread(mesh, torch.float32)).model
        at_rest(model)
        held = sum(local(parameter).numel() for parameter in model.parameters())
        return held, sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tensor", [1, 2])
def test_no_rank_holds_the_whole_model(llama: tiny.Setup, tensor: int) -> None:
    shares = run_ranks(4, own_share, llama.model, tensor)
    assert all(held < 0.3 * whole for held, whole in shares), shares
