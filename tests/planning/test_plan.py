"""Derived numbers by hand, limits and intervals by NeMo's type rule, and refusals whose way out works."""

import re
from dataclasses import replace

import pytest

from dpolish.config import DpoConfig, compose
from dpolish.config.compose import Composed
from dpolish.errors import ConfigError
from dpolish.facts import ModelFacts
from dpolish.layout import RankLayout
from dpolish.planning import (
    DataFacts,
    Machine,
    RunPlan,
    curve,
    describe,
    make_plan,
    remarks,
    sequence_length,
)
from tests.planning.sizes import SMALL

MODEL = SMALL
TRAIN = DataFacts(rows=1000, tokens=300_000, padded_tokens=400_000, largest=900)
VALIDATION = DataFacts(rows=100, tokens=30_000, padded_tokens=40_000, largest=700)
CPU, GPU = Machine("cpu", 16 * 10**9), Machine("cuda", 80 * 10**9)


def composed(*overrides: str) -> Composed[DpoConfig]:
    return compose(None, ["model.global_batch_size=64", *overrides], environ={})


def config(*overrides: str) -> DpoConfig:
    return composed(*overrides).config


def plan(
    *overrides: str,
    model: ModelFacts = MODEL,
    train: DataFacts = TRAIN,
    validation: DataFacts | None = VALIDATION,
    machine: Machine = CPU,
) -> RunPlan:
    made = composed(*overrides)
    return make_plan(made.config, model, train, validation, machine, sequence_length(made, model))


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "per_epoch", "total", "epochs"),
    [
        ([], 16, 16, 1),  # 15.6 batches: the last one is short, not lost
        (["trainer.dpo.max_epochs=3"], 16, 48, 3),
        (["trainer.dpo.max_epochs=3", "trainer.dpo.max_steps=20"], 16, 20, 2),
        (["trainer.dpo.max_steps=99"], 16, 16, 1),
        (["model.global_batch_size=1000"], 1, 1, 1),
        (["model.global_batch_size=1001"], 1, 1, 1),
        (["model.global_batch_size=1"], 1000, 1000, 1),
        (["trainer.dpo.limit_train_batches=5", "trainer.dpo.max_epochs=2"], 5, 10, 2),
        (["trainer.dpo.limit_train_batches=0.5", "trainer.dpo.max_epochs=2"], 8, 16, 2),
        (["trainer.dpo.limit_train_batches=1"], 1, 1, 1),  # a count
        (["trainer.dpo.limit_train_batches=1.0"], 16, 16, 1),  # a share
        (["trainer.dpo.limit_train_batches=0.01"], 1, 1, 1),
        (["trainer.dpo.limit_train_batches=500"], 16, 16, 1),
    ],
)
def test_steps(overrides: list[str], per_epoch: int, total: int, epochs: int) -> None:
    made = plan(*overrides)
    assert (made.steps_per_epoch, made.total_steps, made.epochs) == (per_epoch, total, epochs)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("0.1", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]),  # 1.6 steps, rounded down
        ("0.25", [4, 8, 12, 16]),
        ("1.0", [16]),
        ("1", [*range(1, 17)]),
        ("5", [5, 10, 15, 16]),  # and after the last step
        ("100", [16]),
    ],
)
def test_validation_steps(interval: str, expected: list[int]) -> None:
    made = plan(f"trainer.dpo.val_check_interval={interval}")
    assert [step for step in range(1, made.total_steps + 1) if made.evaluates_at(step)] == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [("1.0", 2), ("1", 1), ("0.5", 1), ("0.01", 1), ("9", 2), ("0", 0), ("0.0", 0)]
)
def test_validation_batches(limit: str, expected: int) -> None:
    made = plan(f"trainer.dpo.limit_val_batches={limit}")
    assert made.validation_batches == expected
    assert made.evaluates_at(made.total_steps) is (expected > 0)


def test_without_validation_rows_nothing_is_validated() -> None:
    made = plan(validation=None)
    assert (made.validation_rows, made.validation_batches, made.evaluates_at(16)) == (0, 0, False)


def test_the_schedule_spans_the_run_and_takes_ratios() -> None:
    ratios = ["model.optim.sched.warmup_ratio=0.25", "model.optim.sched.constant_ratio=0.5"]
    made = plan("trainer.dpo.max_epochs=2", *ratios).schedule
    assert (made.max_steps, made.warmup_steps, made.constant_steps) == (32, 8, 16)
    assert plan("model.optim.sched.max_steps=500").schedule.max_steps == 500
    assert plan("model.optim.sched.name=NoamAnnealing").schedule.d_model == MODEL.hidden_size


@pytest.mark.parametrize(
    ("given_precision", "machine", "precision"),
    [(None, CPU, "32"), (None, GPU, "bf16"), ("32", GPU, "32"), ("bf16", CPU, "bf16"), ("bf16-mixed", CPU, "bf16")],
)
def test_precision(given_precision: str | None, machine: Machine, precision: str) -> None:
    overrides = [] if given_precision is None else [f"trainer.precision={given_precision}"]
    assert plan(*overrides, machine=machine).precision == precision


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "positions", "expected"),
    [
        (None, 2048, 2048),
        (None, 131072, 4096),
        (None, None, 4096),
        (512, 2048, 512),
        (2048, 2048, 2048),
        (9999, None, 9999),
    ],
)
def test_sequence_length(asked: int | None, positions: int | None, expected: int) -> None:
    made = composed() if asked is None else composed(f"model.data.seq_length={asked}")
    assert sequence_length(made, replace(MODEL, max_positions=positions)) == expected


def test_a_length_beyond_the_models_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"seq_length=2049 is more than the 2048 positions of llama\. Set it to 2048"):
        plan("model.data.seq_length=2049")


def test_rotary_positions_that_vary_bound_the_length() -> None:
    varying = replace(MODEL, max_positions=131072, varying_rope=("longrope", 1024))
    assert sequence_length(composed(), varying) == 1024
    assert sequence_length(composed("model.data.seq_length=1024"), varying) == 1024
    with pytest.raises(ConfigError, match=r"seq_length=1025: beyond 1024 tokens the longrope .*Set it to 1024 or less"):
        sequence_length(composed("model.data.seq_length=1025"), varying)
    assert sequence_length(composed(), replace(varying, varying_rope=("longrope", 8192))) == 4096


# --- micro-batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "machine", "expected"),
    [
        (["model.data.seq_length=512"], CPU, 1024),  # what NeMo's padded pair holds
        (["model.data.seq_length=512", "model.micro_batch_size=2"], CPU, 2048),
        (["model.data.seq_length=512", "model.micro_batch_size=8"], CPU, 2048),  # more gains nothing on a CPU
        (["model.data.seq_length=512", "model.micro_batch_size=8"], GPU, 8192),
        (["model.data.tokens_per_micro_batch=77"], CPU, 77),
        (["model.data.packing=false"], CPU, None),
    ],
)
def test_token_budget(overrides: list[str], machine: Machine, expected: int | None) -> None:
    assert plan(*overrides, machine=machine).tokens_per_micro_batch == expected


def test_the_derived_budget_is_the_largest_that_fits_into_memory() -> None:
    machine = Machine("cpu", 200 * 10**6)
    made = plan(machine=machine)
    assert made.tokens_per_micro_batch is not None
    assert TRAIN.largest < made.tokens_per_micro_batch < 2048
    assert made.memory.total <= 200e6
    more = plan(f"model.data.tokens_per_micro_batch={made.tokens_per_micro_batch + 1}", machine=machine)
    assert more.memory.total > 200e6


def test_where_nothing_fits_the_largest_is_tried() -> None:
    assert plan(machine=Machine("cpu", 10**6)).tokens_per_micro_batch == TRAIN.largest


@pytest.mark.parametrize(("batch", "micro"), [(5, 2), (8, 3), (2, 4), (1, 9), (64, 5), (40, 7), (9, 6), (31, 30)])
def test_a_padded_batch_that_does_not_divide_is_refused_with_three_ways_out(batch: int, micro: int) -> None:
    padded = ["model.data.packing=false", f"model.global_batch_size={batch}", f"model.micro_batch_size={micro}"]
    with pytest.raises(ConfigError, match="is not a multiple of") as caught:
        plan(*padded)
    ways_out = re.findall(r"model\.\S+=\w+(?=, or|$)", str(caught.value))
    assert len(ways_out) == 3
    for way_out in ways_out:
        plan(*padded, way_out)


@pytest.mark.parametrize(("batch", "micro"), [(6, 2), (8, 8), (5, 1)])
def test_a_padded_batch_that_divides(batch: int, micro: int) -> None:
    plan("model.data.packing=false", f"model.global_batch_size={batch}", f"model.micro_batch_size={micro}")


def test_a_budget_needs_packing() -> None:
    with pytest.raises(ConfigError, match=r"tokens_per_micro_batch needs model\.data\.packing=true"):
        plan("model.data.packing=false", "model.data.tokens_per_micro_batch=64")


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (3, "does not divide the 8 ranks of trainer.num_nodes=1 × trainer.devices=8"),
        (8, "tensor_model_parallel_size=8 does not divide the 4 key/value heads of llama"),
    ],
)
def test_tensor_parallel_sizes_that_do_not_divide_are_refused(tensor: int, reason: str) -> None:
    machine = Machine("cuda", 80 * 10**9, 1, 8)
    with pytest.raises(ConfigError, match=reason) as caught:
        plan(f"model.tensor_model_parallel_size={tensor}", machine=machine)
    ways_out = re.findall(r"\d+", str(caught.value).rpartition(": ")[2])
    assert "4" in ways_out
    assert plan("model.tensor_model_parallel_size=4", machine=machine).layout.tensor == 4


def test_attention_heads_are_looked_at_too() -> None:
    heads = replace(MODEL, num_heads=6, num_key_value_heads=6)
    with pytest.raises(ConfigError, match=r"size=4 does not divide the 6 attention heads of llama\..*: 1, 2"):
        plan("model.tensor_model_parallel_size=4", model=heads, machine=Machine("cuda", 80 * 10**9, 1, 8))


def test_one_rank_is_one_copy() -> None:
    assert plan().layout == RankLayout()


# --- what is told -----------------------------------------------------------------------------------------------------


def told(*overrides: str, **facts: object) -> list[str]:
    made = config(*overrides)
    machine = facts.pop("machine", CPU)
    assert isinstance(machine, Machine)
    return list(remarks(make_plan(made, MODEL, replace(TRAIN, **facts), VALIDATION, machine, 2048), made))


TUTORIAL = ["model.global_batch_size=256", "model.optim.sched.constant_steps=0"]
"""A run that follows its advice."""


def test_nothing_is_remarked_on_a_run_by_the_tutorial() -> None:
    assert told(*TUTORIAL) == []


@pytest.mark.parametrize(
    ("overrides", "remark"),
    [
        ("sched.constant_steps=1000 sched.warmup_steps=1", "falls from 9e-06 to 9e-07 right after warm-up"),
        ("sched.constant_steps=1000", "the first update has learning rate 0"),
        ("sched.min_lr=1e-6", "the tutorial saw the best results with 9e-7 and 5e-7"),
        ("lr=0.01", "far beyond what fine-tuning survives"),
    ],
)
def test_remarks_on_the_learning_rate(overrides: str, remark: str) -> None:
    found = told(*TUTORIAL, *(f"model.optim.{override}" for override in overrides.split()))
    assert len([line for line in found if remark in line]) == 1


@pytest.mark.parametrize(
    ("overrides", "remark"),
    [
        (["model.global_batch_size=64"], "the tutorial found 256 or 512 best"),
        (["model.global_batch_size=1024"], "the tutorial found 256 or 512 best"),
        (["trainer.dpo.max_epochs=4"], "the tutorial saw no gain beyond 3"),
        (["model.dpo.ref_policy_kl_penalty=0.05"], "the tutorial used 0.1 to 1.0"),
        (["model.dpo.ref_policy_kl_penalty=3"], "the tutorial used 0.1 to 1.0"),
        (["model.dpo.preference_loss=ipo"], "ipo here sums log-probabilities"),
        (["model.global_batch_size=512", "trainer.dpo.limit_train_batches=1"], None),
        (["model.dpo.preference_loss=ipo", "model.dpo.preference_average_log_probs=true"], None),
        (["model.dpo.ref_policy_kl_penalty=0.1", "trainer.dpo.max_epochs=3"], None),
    ],
)
def test_remarks(overrides: list[str], remark: str | None) -> None:
    found = told(*TUTORIAL, *overrides)
    if remark is None:
        assert found == []
    else:
        assert len([line for line in found if remark in line]) == 1


def test_remarks_on_the_data_and_the_machine() -> None:
    assert any("less than one global batch of 256" in line for line in told(*TUTORIAL, rows=100))
    short = told(*TUTORIAL, machine=Machine("cpu", 10**6))
    assert any("GB are needed" in line and "the model alone takes" in line for line in short)
    tight = told(*TUTORIAL, machine=Machine("cpu", 60 * 10**6))
    assert any("GB are needed" in line and "activations_checkpoint_granularity=full" in line for line in tight)


def test_ranks_without_rows_and_a_setting_without_effect_are_remarked_on() -> None:
    many = Machine("cuda", 80 * 10**9, num_nodes=64, devices=8)
    assert any(
        "512 data-parallel ranks less than a row each: 256 of them" in line for line in told(*TUTORIAL, machine=many)
    )
    alone = told(*TUTORIAL, "model.sequence_parallel=true")
    assert any("sequence_parallel has no effect with model.tensor_model_parallel_size=1" in line for line in alone)


def test_every_value_is_marked_with_where_it_comes_from() -> None:
    asked = composed("trainer.dpo.max_epochs=2", "model.data.seq_length=512")
    made = make_plan(asked.config, MODEL, TRAIN, VALIDATION, CPU, 512)
    rows = {name: (value, mark) for name, value, mark in describe(made, asked)}
    assert rows["trainer.dpo.max_epochs"] == ("2", "given")
    assert rows["model.global_batch_size"] == ("64", "given")
    assert rows["model.data.seq_length"] == ("512", "given")
    assert rows["optimizer steps"] == ("32", "derived")
    assert rows["model.data.tokens_per_micro_batch"] == ("1024", "derived")
    assert rows["trainer.precision"] == ("32", "derived")
    assert rows["validation"] == ("2 batches every 1 steps and after the last", "derived")
    assert {mark for _, mark in rows.values()} <= {"default", "given", "environment", "derived"}
    of_rows = {name for name, _, mark in describe(made, asked, assumed=True) if mark == "assumed"}
    assert of_rows == {"training rows", "steps per epoch", "optimizer steps", "validation"}


def test_the_curve_shows_the_ends_and_the_bend() -> None:
    made = plan("trainer.dpo.max_epochs=10", "model.optim.sched.constant_steps=0")
    steps = dict(curve(made))
    assert list(steps) == sorted(steps)
    assert {1, 11, 12, 160} <= steps.keys()
    assert steps[11] == max(steps.values()) == 9e-6
    assert all(rate == made.schedule.lr_at(step - 1) for step, rate in steps.items())


def test_the_curve_of_one_step() -> None:
    assert curve(plan("trainer.dpo.max_steps=1", "model.optim.sched.constant_steps=0")) == [
        (1, pytest.approx(9e-6 / 11))
    ]
