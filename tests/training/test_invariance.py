"""How a batch is cut, packed and computed never changes what is learned; and what must stop a run does."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file, save

import dpolish
from dpolish.errors import RunError
from dpolish.files import cache_root
from dpolish.records import StepRecord
from tests import tiny
from tests.tiny import Setup

PACE = {"step_time", "tokens_per_second", "pairs_per_second", "validation_step_time"}
"""Metrics of the clock."""

PADDED = "model.data.packing=false"
NOT_SHARED = "model.prefix_sharing=off"
SAME = {
    "padded, one pair": [PADDED, "model.micro_batch_size=1"],
    "padded, two pairs": [PADDED, "model.micro_batch_size=2"],
    "padded, four pairs": [PADDED, "model.micro_batch_size=4"],
    "padded, not shared": [PADDED, NOT_SHARED, "model.micro_batch_size=2"],
    "packed, each pair alone": ["model.data.tokens_per_micro_batch=1"],
    "packed, two or so": ["model.data.tokens_per_micro_batch=80"],
    "packed, all at once": ["model.data.tokens_per_micro_batch=100000"],
    "packed, not shared": [NOT_SHARED, "model.data.tokens_per_micro_batch=100"],
    "other micro-batch": ["model.micro_batch_size=4"],
    "checkpointing": ["model.activations_checkpoint_granularity=full"],
    "selective checkpointing, padded": ["model.activations_checkpoint_granularity=selective", PADDED],
    "dense attention": ["model.attention_backend=dense"],
    "precision 32": ["trainer.precision=32"],
    "no cache": ["model.dpo.reference_cache=off"],
}


@pytest.fixture(scope="module")
def base(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all others are compared with: packed, shared prompts, defaults."""
    return setup.run(tmp_path_factory.mktemp("base") / "run").directory


def values(directory: Path, split: str) -> list[dict[str, float]]:
    return [
        {name: value for name, value in record.items() if name not in PACE} for record in tiny.metrics(directory, split)
    ]


@pytest.mark.parametrize("name", SAME)
def test_the_same_losses_and_weights(setup: Setup, base: Path, tmp_path: Path, name: str) -> None:
    directory = setup.run(tmp_path / "run", *SAME[name]).directory
    for split in ("train", "val"):
        ours, theirs = values(directory, split), values(base, split)
        assert len(ours) == len(theirs) == (5 if split == "train" else 3)
        for one, other in zip(ours, theirs, strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    assert tiny.largest_difference(tiny.weights(directory / "model"), tiny.weights(base / "model")) < 1e-4


def test_one_reference_serves_every_layout(setup: Setup, tmp_path: Path) -> None:
    """Scored padded and apart, trained packed and shared, and the other way round: nothing is scored again."""
    first = setup.run(tmp_path / "first", PADDED, NOT_SHARED, "model.micro_batch_size=4")
    assert (first.num_reference_scored, first.num_reference_cached) == (16, 0)
    second = setup.run(tmp_path / "second", "model.data.tokens_per_micro_batch=100")
    assert (second.num_reference_scored, second.num_reference_cached) == (0, 16)
    assert tiny.metrics(second.directory)[0]["rewards_chosen_mean"] == pytest.approx(0, abs=1e-4)


def test_validation_is_the_mean_over_all_rows_whatever_the_batch(setup: Setup, tmp_path: Path) -> None:
    """The first update has rate 0 here: what is validated is the model as it came."""
    still = ["trainer.dpo.max_steps=1", "model.optim.sched.constant_steps=2"]
    found = {}
    for batch in (1, 2, 3, 5, 16):
        directory = setup.run(tmp_path / str(batch), *still, f"model.global_batch_size={batch}").directory
        found[batch] = values(directory, "val")[0]
    for record in found.values():
        assert record["logps_chosen_mean"] == pytest.approx(found[5]["logps_chosen_mean"], rel=1e-6)
        assert record["logps_rejected_mean"] == pytest.approx(found[5]["logps_rejected_mean"], rel=1e-6)
    limited = setup.run(tmp_path / "limited", *still, "model.global_batch_size=2", "trainer.dpo.limit_val_batches=1")
    assert values(limited.directory, "val")[0]["logps_chosen_mean"] != pytest.approx(
        found[5]["logps_chosen_mean"], rel=1e-2
    )


@pytest.mark.parametrize("name", ["padded, two pairs", "packed, not shared", "packed, all at once", "dense attention"])
def test_until_a_weight_moves_every_reward_is_zero_and_no_pair_is_won(setup: Setup, tmp_path: Path, name: str) -> None:
    """To the last bit, although what was scored under another layout differs by rounding."""
    setup.run(tmp_path / "first", PADDED, NOT_SHARED, "model.micro_batch_size=1")
    still = ["model.optim.sched.constant_steps=2", "trainer.dpo.val_check_interval=1"]  # the first update has rate 0
    directory = setup.run(tmp_path / "run", *SAME[name], *still).directory
    train, val = values(directory, "train"), values(directory, "val")
    for record in (train[0], train[1], val[0]):
        assert {record[f"rewards_{kind}"] for kind in ("chosen_mean", "rejected_mean", "all_std", "margin_mean")} == {
            0.0
        }
        assert record["acc"] == 0.0
    for record in (train[2], val[1]):
        assert record["rewards_all_std"] > 1e-3


@pytest.fixture
def determinism() -> Iterator[None]:
    """Torch's global switch, put back."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("determinism")
def test_deterministic_runs_are_equal_to_the_last_bit(setup: Setup, tmp_path: Path) -> None:
    """Also where one scores the reference and the other finds it in the cache."""
    first, second = (setup.run(tmp_path / name, "trainer.deterministic=true") for name in ("first", "second"))
    assert torch.are_deterministic_algorithms_enabled()
    for split in ("train", "val"):
        assert values(first.directory, split) == values(second.directory, split)
    ours, theirs = tiny.weights(first.model), tiny.weights(second.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_seed_changes_the_order_of_rows(setup: Setup, base: Path, tmp_path: Path) -> None:
    directory = setup.run(tmp_path / "run", "model.seed=7").directory
    assert values(directory, "train")[0]["logps_chosen_mean"] != values(base, "train")[0]["logps_chosen_mean"]


def test_bfloat16_is_near(setup: Setup, base: Path, tmp_path: Path) -> None:
    result = setup.run(tmp_path / "run", "trainer.precision=bf16")
    ours, theirs = values(result.directory, "train"), values(base, "train")
    assert [record["logps_chosen_mean"] for record in ours] == pytest.approx(
        [record["logps_chosen_mean"] for record in theirs], rel=0.02
    )
    assert [record["lr"] for record in ours] == [record["lr"] for record in theirs]
    assert ours[-1]["loss"] < 0.6 * ours[0]["loss"]
    saved = tiny.weights(result.model)
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert tiny.largest_difference(saved, tiny.weights(base / "model")) < 0.1


# --- what stops a run -------------------------------------------------------------------------------------------------


def tamper(shift: float) -> None:
    """Move every stored score, in whole segments with right names and marks: nothing but the numbers is wrong."""
    for segment in (cache_root() / "reference").glob("*/*.safetensors"):
        tables = load_file(segment)
        content = save({**tables, "logprobs": tables["logprobs"] + shift}, metadata={"identity": segment.parent.name})
        segment.unlink()
        (segment.parent / f"{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)


def test_a_reference_that_is_not_the_policy_stops_the_run_before_a_weight_moves(setup: Setup, tmp_path: Path) -> None:
    setup.run(tmp_path / "first")
    tamper(0.01)
    with pytest.raises(RunError) as caught:
        setup.run(tmp_path / "second")
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.startswith("step 0: policy and reference differ by 1.0")
    for cause in ("dropout", "precision", "another model", "model.dpo.reference_cache"):
        assert cause in message
    assert not (tmp_path / "second" / "model").exists()
    assert (tmp_path / "second" / "metrics.jsonl").read_text() == ""


def test_a_difference_within_rounding_does_not(setup: Setup, tmp_path: Path) -> None:
    setup.run(tmp_path / "first")
    tamper(5e-5)
    assert setup.run(tmp_path / "second").num_reference_scored == 0


def test_an_explosion_stops_the_run_and_names_the_rows(setup: Setup, tmp_path: Path) -> None:
    explosive = ["model.optim.lr=1e30", "trainer.dpo.gradient_clip_val=0"]
    with pytest.raises(RunError, match=r"(?s)step \d: the gradient norm is .*lower model\.optim\.lr") as caught:
        setup.run(tmp_path / "run", *explosive)
    assert f"{setup.train}:" in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()
    assert tiny.metrics(tmp_path / "run"), "the steps before it stand"


def test_records_reach_the_sinks_as_they_are_made_and_sinks_are_closed(setup: Setup, tmp_path: Path) -> None:
    class Kept:
        def __init__(self) -> None:
            self.records: list[StepRecord] = []
            self.closed = 0

        def write(self, record: StepRecord) -> None:
            self.records.append(record)
            if record.step == 3:
                raise KeyboardInterrupt

        def close(self) -> None:
            self.closed += 1

    kept = Kept()
    with pytest.raises(KeyboardInterrupt):
        dpolish.train(setup.composed(tmp_path / "run"), say=lambda _: None, sinks=lambda _: [kept])
    assert [(record.step, record.split) for record in kept.records] == [
        (1, "train"),
        (2, "train"),
        (2, "val"),
        (3, "train"),
    ]
    assert kept.closed == 1
    assert [record["step"] for record in tiny.metrics(tmp_path / "run")] == [1, 2, 3]
