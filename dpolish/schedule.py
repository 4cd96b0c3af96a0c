"""Learning rate as a pure function of the step: NeMo's formulas under NeMo's names. No torch: plan prints the curve.

Letters: s the 0-based optimizer step, N `max_steps`, W `warmup_steps`, K `constant_steps`, H the end of the hold (W +
`hold_steps`), m `min_lr`. What NeMo does at the edges is kept, because a curve that is only alike trains another model:

- the warm-up lasts while s ≤ W (W + 1 updates) and wins over everything, also behind N;
- behind N the rate is m, except for Noam and Constant;
- K > 0 changes the warm-up of CosineAnnealing too: it starts at rate 0.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from dpolish.errors import ConfigError
from dpolish.registry import Registry

LearningRate = Callable[..., float]
"""`(step, *, lr, options) -> float`: the rate of the update made at this 0-based step."""

SCHEDULES: Registry[LearningRate] = Registry("learning-rate schedule")


def schedule_options(name: str) -> frozenset[str]:
    """The numbers that a schedule takes, read from its signature: the others have no effect on it.

    >>> sorted(schedule_options("LinearWarmup"))
    ['lr', 'max_steps', 'min_lr', 'warmup_steps']
    """
    parameters = inspect.signature(SCHEDULES[name]).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def steps_of(steps: int | None, ratio: float | None, max_steps: int) -> int | None:
    """The number of steps meant by NeMo's pair `x_steps`, `x_ratio`: a ratio is a share of N, rounded down, and wins.

    >>> steps_of(10, None, 500), steps_of(10, 0.1, 500), steps_of(None, None, 500)
    (10, 50, None)
    """
    return steps if ratio is None else int(ratio * max_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A schedule's name and all its numbers: everything that decides the learning rate of a step."""

    name: str
    lr: float
    """Highest rate; a factor on the whole curve in NoamAnnealing."""
    min_lr: float
    """Lowest rate after the warm-up."""
    max_steps: int
    """Optimizer steps of the run."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    constant_steps: int = 0
    """Steps at the end of CosineAnnealing that stay at `min_lr`."""
    hold_steps: int | None = None
    """Steps after the warm-up that stay at `lr`; None is not 0 in PolynomialHoldDecayAnnealing."""
    power: float = 1.0
    """Exponent of the polynomial decays."""
    d_model: int | None = None
    """Hidden size in NoamAnnealing."""

    def __post_init__(self) -> None:
        options = schedule_options(self.name)
        if "d_model" in options and self.d_model is None:
            raise ConfigError(f"model.optim.sched.d_model: {self.name} needs it; give the hidden size of the model.")
        if "min_lr" in options and self.lr < self.min_lr:
            raise ConfigError(
                f"model.optim.lr: {self.lr:g} is below model.optim.sched.min_lr {self.min_lr:g}. Raise the one or "
                "lower the other; equal values give a constant rate after the warm-up."
            )

    def lr_at(self, step: int) -> float:
        """The rate of the update made at this 0-based step.

        >>> default = Schedule(name="CosineAnnealing", lr=9e-6, min_lr=9e-7, max_steps=100, warmup_steps=10)
        >>> [f"{default.lr_at(step):.2e}" for step in (0, 10, 55, 99)]
        ['8.18e-07', '9.00e-06', '4.95e-06', '9.02e-07']
        """
        options = {option: getattr(self, option) for option in schedule_options(self.name)}
        return SCHEDULES[self.name](step, **options)

    def drops_after_warmup(self) -> bool:
        """True when the first update after the warm-up is already at `min_lr`: no room is left between the two.

        NeMo's default of 1000 `constant_steps` does this to every run of up to 1000 + `warmup_steps` steps.

        >>> short = Schedule(name="CosineAnnealing", lr=9e-6, min_lr=9e-7, max_steps=100, constant_steps=1000)
        >>> short.drops_after_warmup()
        True
        """
        first = self.warmup_steps + 1 if self.warmup_steps else 0
        return first < self.max_steps and self.lr_at(first) <= self.min_lr < self.lr


@SCHEDULES.register("CosineAnnealing")
def cosine_annealing(
    step: int, *, lr: float, min_lr: float, max_steps: int, warmup_steps: int, constant_steps: int
) -> float:
    """Warm-up, half a cosine down to m over D = N - K - W steps, then K steps at m.

    K = 0: lr (s+1)/(W+1), then m + (lr-m) ½ (1 + cos π(s-W)/D).
    K > 0: lr s/W (the first update has rate 0), then the same cosine; with D ≤ 0 the rate falls to m at once.
    """
    decay_steps = max_steps - constant_steps - warmup_steps
    if step <= warmup_steps and warmup_steps > 0:
        return lr * step / warmup_steps if constant_steps else _warmup(step, lr, warmup_steps)
    if step > warmup_steps + decay_steps or decay_steps <= 0:
        return min_lr
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / decay_steps))


@SCHEDULES.register("WarmupAnnealing")
def warmup_annealing(step: int, *, lr: float, min_lr: float, max_steps: int, warmup_steps: int) -> float:
    """Warm-up, then a straight line to m: m + (lr-m) (1 - (s-W)/(N-W))."""
    return polynomial_decay_annealing(
        step, lr=lr, min_lr=min_lr, max_steps=max_steps, warmup_steps=warmup_steps, power=1.0
    )


@SCHEDULES.register("LinearWarmup")
@SCHEDULES.register("WarmupHoldPolicy")
def linear_warmup(step: int, *, lr: float, min_lr: float, max_steps: int, warmup_steps: int) -> float:
    """Warm-up, then lr to the end of the run. NeMo's hold phase and what follows it there have the same rate, lr."""
    if step <= warmup_steps and warmup_steps > 0:
        return _warmup(step, lr, warmup_steps)
    return min_lr if step > max_steps else lr


@SCHEDULES.register("SquareAnnealing")
def square_annealing(step: int, *, lr: float, min_lr: float, max_steps: int, warmup_steps: int) -> float:
    """Warm-up, then max(m, lr ((N-s)/(N-W))²)."""
    if step <= warmup_steps and warmup_steps > 0:
        return _warmup(step, lr, warmup_steps)
    if step >= max_steps:
        return min_lr
    return max(min_lr, lr * ((max_steps - step) / (max_steps - warmup_steps)) ** 2)


@SCHEDULES.register("SquareRootAnnealing")
def square_root_annealing(step: int, *, lr: float, min_lr: float, max_steps: int, warmup_steps: int) -> float:
    """Warm-up, then max(m, lr √((N-s)/N)): counted from step 0, so that the rate steps down where the warm-up ends."""
    if step <= warmup_steps and warmup_steps > 0:
        return _warmup(step, lr, warmup_steps)
    if step >= max_steps:
        return min_lr
    return max(min_lr, lr * math.sqrt((max_steps - step) / max_steps))


@SCHEDULES.register("NoamAnnealing")
def noam_annealing(step: int, *, lr: float, min_lr: float, warmup_steps: int, d_model: int) -> float:
    """lr d_model^-½ min(s^-½, s W^-1½) with s ≥ 1; at least m after the warm-up.

    Vaswani et al. 2017, section 5.3 (https://arxiv.org/abs/1706.03762), times lr: lr is a factor, not the highest rate.
    """
    step = max(1, step)
    rise = step / (warmup_steps * math.sqrt(warmup_steps)) if warmup_steps > 0 else math.inf
    rate = lr / math.sqrt(d_model) * min(1 / math.sqrt(step), rise)
    return max(min_lr, rate) if step > warmup_steps else rate


@SCHEDULES.register("InverseSquareRootAnnealing")
def inverse_square_root_annealing(step: int, *, lr: float, min_lr: float, max_steps: int, warmup_steps: int) -> float:
    """Warm-up, then lr √((W+1)/(s+1)); m bounds it only behind N."""
    if step <= warmup_steps and warmup_steps > 0:
        return _warmup(step, lr, warmup_steps)
    return min_lr if step > max_steps else lr / math.sqrt((step + 1) / (warmup_steps + 1))


@SCHEDULES.register("PolynomialDecayAnnealing")
def polynomial_decay_annealing(
    step: int, *, lr: float, min_lr: float, max_steps: int, warmup_steps: int, power: float
) -> float:
    """Warm-up, then m + (lr-m) (1 - (s-W)/(N-W))^power."""
    if step <= warmup_steps and warmup_steps > 0:
        return _warmup(step, lr, warmup_steps)
    return _polynomial(step - warmup_steps, lr, min_lr, max_steps - warmup_steps, power)


@SCHEDULES.register("PolynomialHoldDecayAnnealing")
def polynomial_hold_decay_annealing(
    step: int, *, lr: float, min_lr: float, max_steps: int, warmup_steps: int, hold_steps: int | None, power: float
) -> float:
    """Warm-up, lr while s < H, then m + (lr-m) (1 - (s-H)/(N-H))^power.

    Without `hold_steps` NeMo counts the decay from step 0 but gives it N - W steps: it is W steps further on when the
    warm-up ends, and reaches m W steps before the run does.
    """
    if step <= warmup_steps and warmup_steps > 0:
        return _warmup(step, lr, warmup_steps)
    hold_end = 0 if hold_steps is None else warmup_steps + hold_steps
    if step < hold_end:
        return lr
    if step > max_steps:
        return min_lr
    return _polynomial(step - hold_end, lr, min_lr, max_steps - max(warmup_steps, hold_end), power)


@SCHEDULES.register("Constant")
def constant(step: int, *, lr: float) -> float:  # noqa: ARG001 (every schedule is a function of the step)
    """lr at every step, without warm-up."""
    return lr


def _warmup(step: int, lr: float, warmup_steps: int) -> float:
    return lr * (step + 1) / (warmup_steps + 1)


def _polynomial(done: int, lr: float, min_lr: float, decay_steps: int, power: float) -> float:
    """The rate after `done` of `decay_steps` steps of decay; m behind them, and where there are none."""
    if done >= decay_steps:
        return min_lr
    return min_lr + (lr - min_lr) * math.pow(1 - done / decay_steps, power)
