"""Tables by hand from NeMo's formulas; the edges where its curves jump are part of them."""

import math
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dpolish.config import schema
from dpolish.errors import ConfigError
from dpolish.schedule import SCHEDULES, Schedule, schedule_options, steps_of

ROOT_HALF = math.sqrt(0.5)

# lr = 1 and m = 0.1 unless a row says otherwise; (name, numbers, {step: rate}).
# fmt: off
TABLES = [
    # Cosine, K = 0: (s+1)/(W+1), then 0.1 + 0.45 (1 + cos π(s-W)/(N-W))
    ("CosineAnnealing", {"max_steps": 12, "warmup_steps": 4},
     {0: 0.2, 3: 0.8, 4: 1.0, 6: 0.1 + 0.45 * (1 + ROOT_HALF), 8: 0.55, 10: 0.1 + 0.45 * (1 - ROOT_HALF),
      12: 0.1, 13: 0.1}),
    ("CosineAnnealing", {"max_steps": 8, "warmup_steps": 0}, {0: 1.0, 4: 0.55, 8: 0.1, 9: 0.1}),
    ("CosineAnnealing", {"max_steps": 3, "warmup_steps": 4}, {0: 0.2, 2: 0.6, 3: 0.8, 4: 1.0, 5: 0.1}),     # N < W
    ("CosineAnnealing", {"max_steps": 4, "warmup_steps": 4}, {3: 0.8, 4: 1.0, 5: 0.1}),                     # N = W
    # Cosine, K > 0: s/W, the cosine over D = 12 - 4 - 4 steps, then m
    ("CosineAnnealing", {"max_steps": 12, "warmup_steps": 4, "constant_steps": 4},
     {0: 0.0, 1: 0.25, 4: 1.0, 5: 0.1 + 0.45 * (1 + ROOT_HALF), 6: 0.55, 8: 0.1, 9: 0.1, 11: 0.1, 13: 0.1}),
    ("CosineAnnealing", {"max_steps": 8, "warmup_steps": 0, "constant_steps": 4}, {0: 1.0, 2: 0.55, 4: 0.1, 7: 0.1}),
    ("CosineAnnealing", {"max_steps": 8, "warmup_steps": 4, "constant_steps": 4}, {0: 0.0, 4: 1.0, 5: 0.1}),  # D = 0
    ("CosineAnnealing", {"max_steps": 100, "warmup_steps": 10, "constant_steps": 1000},
     {0: 0.0, 5: 0.5, 10: 1.0, 11: 0.1, 99: 0.1}),
    ("CosineAnnealing", {"max_steps": 5, "warmup_steps": 10, "constant_steps": 1000}, {0: 0.0, 4: 0.4}),
    ("CosineAnnealing", {"max_steps": 4, "warmup_steps": 0, "constant_steps": 4}, {0: 0.1, 3: 0.1}),  # D = 0
    ("CosineAnnealing", {"max_steps": 4, "warmup_steps": 0, "constant_steps": 9}, {0: 0.1, 3: 0.1}),
    # lr = m: constant after the warm-up, on both branches
    ("CosineAnnealing", {"max_steps": 9, "warmup_steps": 1, "lr": 0.1}, {0: 0.05, 1: 0.1, 5: 0.1, 8: 0.1}),
    ("CosineAnnealing", {"max_steps": 9, "warmup_steps": 2, "constant_steps": 3, "lr": 0.1},
     {0: 0.0, 1: 0.05, 4: 0.1, 8: 0.1}),
    # a line from (W, 1) to (N, m)
    ("WarmupAnnealing", {"max_steps": 14, "warmup_steps": 4},
     {0: 0.2, 4: 1.0, 5: 0.91, 9: 0.55, 13: 0.19, 14: 0.1, 15: 0.1}),
    ("WarmupAnnealing", {"max_steps": 3, "warmup_steps": 3}, {2: 0.75, 3: 1.0, 4: 0.1}),
    ("WarmupHoldPolicy", {"max_steps": 14, "warmup_steps": 4, "hold_steps": 3},
     {0: 0.2, 3: 0.8, 4: 1.0, 7: 1.0, 13: 1.0, 14: 1.0, 15: 0.1}),
    ("LinearWarmup", {"max_steps": 14, "warmup_steps": 4}, {0: 0.2, 3: 0.8, 4: 1.0, 13: 1.0, 15: 0.1}),
    ("LinearWarmup", {"max_steps": 14, "warmup_steps": 0}, {0: 1.0, 13: 1.0}),
    # ((14-s)/10)², not below m
    ("SquareAnnealing", {"max_steps": 14, "warmup_steps": 4},
     {0: 0.2, 4: 1.0, 5: 0.81, 9: 0.25, 10: 0.16, 11: 0.1, 14: 0.1, 15: 0.1}),
    # √((16-s)/16): at s = 5 not 1
    ("SquareRootAnnealing", {"max_steps": 16, "warmup_steps": 4},
     {0: 0.2, 4: 1.0, 5: math.sqrt(11) / 4, 7: 0.75, 12: 0.5, 15: 0.25, 16: 0.1, 17: 0.1}),
    # 2/8 · min(s^-½, s/8), W = 4; step 0 counts as 1
    ("NoamAnnealing", {"max_steps": 99, "warmup_steps": 4, "d_model": 64, "lr": 2.0, "min_lr": 0.07},
     {0: 1 / 32, 1: 1 / 32, 2: 1 / 16, 4: 1 / 8, 9: 1 / 12, 16: 0.07, 100: 0.07}),
    ("NoamAnnealing", {"max_steps": 99, "warmup_steps": 0, "d_model": 64, "lr": 2.0, "min_lr": 0.07},
     {0: 0.25, 1: 0.25, 4: 0.125}),
    # √(4/(s+1)): below m as well, until N
    ("InverseSquareRootAnnealing", {"max_steps": 999, "warmup_steps": 3},
     {0: 0.25, 3: 1.0, 15: 0.5, 35: 1 / 3, 624: 0.08, 1000: 0.1}),
    # 0.1 + 0.9 (1 - (s-4)/10)^2
    ("PolynomialDecayAnnealing", {"max_steps": 14, "warmup_steps": 4, "power": 2.0},
     {0: 0.2, 4: 1.0, 5: 0.829, 9: 0.325, 13: 0.109, 14: 0.1, 15: 0.1}),
    ("PolynomialDecayAnnealing", {"max_steps": 14, "warmup_steps": 4}, {9: 0.55}),
    # H = 7: 0.1 + 0.9 (1 - (s-7)/10)^2
    ("PolynomialHoldDecayAnnealing", {"max_steps": 17, "warmup_steps": 4, "hold_steps": 3, "power": 2.0},
     {0: 0.2, 4: 1.0, 6: 1.0, 7: 1.0, 8: 0.829, 12: 0.325, 17: 0.1, 18: 0.1}),
    # no hold: 0.1 + 0.9 (1 - s/10), the warm-up ends in a jump, and m comes W steps early
    ("PolynomialHoldDecayAnnealing", {"max_steps": 14, "warmup_steps": 4},
     {4: 1.0, 5: 0.55, 9: 0.19, 10: 0.1, 13: 0.1}),
    ("PolynomialHoldDecayAnnealing", {"max_steps": 14, "warmup_steps": 4, "hold_steps": 0},
     {4: 1.0, 5: 0.91, 13: 0.19}),
    ("PolynomialHoldDecayAnnealing", {"max_steps": 9, "warmup_steps": 4, "hold_steps": 6}, {4: 1.0, 8: 1.0}),
    ("Constant", {"max_steps": 5, "warmup_steps": 4}, {0: 1.0, 4: 1.0, 9: 1.0}),
]
# fmt: on


@pytest.mark.parametrize(("name", "numbers", "rates"), TABLES)
def test_table(name: str, numbers: dict[str, float], rates: dict[int, float]) -> None:
    schedule = Schedule(**{"name": name, "lr": 1.0, "min_lr": 0.1, **numbers})
    assert {step: schedule.lr_at(step) for step in rates} == pytest.approx(rates, rel=1e-12, abs=1e-15)


def test_every_schedule_has_a_table() -> None:
    assert {name for name, *_ in TABLES} == set(SCHEDULES)


def test_configuration_knows_the_same_names() -> None:
    assert set(SCHEDULES) == set(schema.SCHEDULES)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(
    warmup=st.integers(0, 12),
    constant=st.integers(0, 12),
    hold=st.none() | st.integers(0, 12),
    steps=st.integers(1, 20),
    power=st.floats(0.5, 3),
)
def test_rates_of_any_run_are_between_zero_and_lr(
    name: str, warmup: int, constant: int, hold: int | None, steps: int, power: float
) -> None:
    """No combination divides by zero, leaves the reals, or goes beyond the rate asked for."""
    schedule = Schedule(
        name=name, lr=2.0, min_lr=0.5, max_steps=steps, warmup_steps=warmup, constant_steps=constant,
        hold_steps=hold, power=power, d_model=16,
    )  # fmt: skip
    rates = [schedule.lr_at(step) for step in range(steps + 2)]
    assert all(0 <= rate <= 2.0 for rate in rates)
    if name not in ("InverseSquareRootAnnealing", "NoamAnnealing"):  # the one has no floor, the other is scaled
        assert all(rate >= 0.5 for step, rate in enumerate(rates) if step > warmup)


@pytest.mark.parametrize(
    ("numbers", "drops"),
    [
        ({"max_steps": 100, "warmup_steps": 10, "constant_steps": 1000}, True),  # NeMo's default, a short run
        ({"max_steps": 1010, "warmup_steps": 10, "constant_steps": 1000}, True),
        ({"max_steps": 1012, "warmup_steps": 10, "constant_steps": 1000}, False),  # two steps of cosine
        ({"max_steps": 100, "warmup_steps": 0, "constant_steps": 1000}, True),
        ({"max_steps": 100, "warmup_steps": 10, "constant_steps": 0}, False),
        ({"max_steps": 11, "warmup_steps": 10, "constant_steps": 1000}, False),  # ends with the warm-up
        ({"max_steps": 12, "warmup_steps": 10, "constant_steps": 1000}, True),
        ({"max_steps": 100, "warmup_steps": 10, "constant_steps": 1000, "min_lr": 9e-6}, False),  # nothing to drop
    ],
)
def test_drops_after_warmup(numbers: dict[str, float], drops: bool) -> None:
    schedule = Schedule(**{"name": "CosineAnnealing", "lr": 9e-6, "min_lr": 9e-7, **numbers})
    assert schedule.drops_after_warmup() is drops


def test_ratios_are_shares_of_the_run_rounded_down() -> None:
    assert steps_of(None, 0.1, 999) == 99
    assert steps_of(10, 0.0, 999) == 0
    assert steps_of(10, None, 999) == 10


def test_a_rate_below_its_floor_is_refused_where_there_is_a_floor() -> None:
    with pytest.raises(ConfigError, match=r"model\.optim\.lr: 1e-07 is below model\.optim\.sched\.min_lr 9e-07"):
        Schedule(name="CosineAnnealing", lr=1e-7, min_lr=9e-7, max_steps=5)
    assert Schedule(name="Constant", lr=1e-7, min_lr=9e-7, max_steps=5).lr_at(3) == 1e-7


def test_noam_asks_for_the_hidden_size() -> None:
    with pytest.raises(ConfigError, match=r"sched\.d_model"):
        Schedule(name="NoamAnnealing", lr=1.0, min_lr=0.0, max_steps=5)


def test_an_unknown_schedule_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'CosineAnnealing'"):
        Schedule(name="CosineAnealing", lr=1.0, min_lr=0.0, max_steps=5)


def test_options_are_read_from_the_signature() -> None:
    assert schedule_options("Constant") == {"lr"}
    assert "constant_steps" in schedule_options("CosineAnnealing")
    assert "constant_steps" not in schedule_options("WarmupAnnealing")


def test_loads_without_torch() -> None:
    code = "import dpolish.schedule, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
