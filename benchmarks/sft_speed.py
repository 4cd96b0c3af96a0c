"""Our SFT step against TRL's SFTTrainer: same model, token ids, optimizer, float32, in turn within one run.

    python -m benchmarks.sft_speed [--regime NAME …] [--steps N] [--rounds N] [--model DIR] [--data DIR] [--results DIR]

For every regime four processes run one after the other: ours, TRL unpacked at its best, TRL unpacked as it comes, TRL
packed at its best; `--rounds` repeats the turn. All train on the same rows, once; but TRL counts a batch in packed
sequences, so its packed steps hold other rows than the others' and the table compares rows and trained tokens per
second, not steps: those of all steps after each process's first, which holds the same rows everywhere. TRL is looked
for in `.venv-bench` (`make bench` creates it); all sides see the same torch and transformers.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.driver import Settings, run, settings, take_turns, warn, warn_if_different, warn_if_disturbed
from benchmarks.plain import plain_loss
from benchmarks.regimes import SFT_REGIMES, Regime, TokenRow, padded_over_real, rows_of
from benchmarks.sides import SideResult

OURS, BEST, DEFAULT, PACKED = "dpolish", "TRL, its best", "TRL, default", "TRL, packed"
ROUNDING = 1e-5
"""Largest relative difference between two float32 computations of one loss."""


@dataclass(frozen=True, slots=True)
class Work:
    """What all steps after the first hold and need together, on every side, and what the machine gives."""

    rows: int
    tokens: int
    trained: int
    flops: float
    gemm_flops: float

    @staticmethod
    def of(rows: Sequence[TokenRow], batch: int, ours: Sequence[SideResult]) -> "Work":
        """From the rows, and from what our side measured in each round."""
        rest = rows[batch:]
        return Work(
            rows=len(rest),
            tokens=sum(row.num_tokens for row in rest),
            trained=sum(row.num_trained for row in rest),
            flops=sum(ours[0].needed_flops[1:]),
            gemm_flops=median(result.gemm_flops for result in ours if result.gemm_flops is not None),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A side in a regime: medians over rounds, each of them over all its steps but the first."""

    side: str
    rows_per_second: float
    trained_per_second: float
    """Trained tokens."""
    tokens_per_step: float
    """Real tokens: no padding."""
    cores: float
    peak_gib: float
    share_of_gemm: float
    losses: list[float]
    first_loss_off: float
    """The first step's loss over that of a plain padded computation of the same rows (`plain`), less 1."""
    same_rows: bool
    """Whether the first step held the first rows, and the others together held each of the others once."""
    rounds: list[list[float]]
    """Seconds of every step of every round, the warm-up included."""

    @staticmethod
    def of(side: str, results: Sequence[SideResult], work: Work, first_loss: float) -> "Row":
        """From what the side measured in each round, and the first step's loss computed plainly."""
        rounds = [result.step_seconds for result in results]
        seconds = median(sum(steps[1:]) for steps in rounds)
        first, *others = results[0].step_rows
        batch = len(first)
        rest = sorted(row for step in others for row in step)
        return Row(
            side=side,
            rows_per_second=work.rows / seconds,
            trained_per_second=work.trained / seconds,
            tokens_per_step=work.tokens / len(others),
            cores=min(result.cores for result in results),
            peak_gib=max(result.peak_bytes for result in results) / 2**30,
            share_of_gemm=work.flops / seconds / work.gemm_flops,
            losses=results[0].losses,
            first_loss_off=results[0].losses[0] / first_loss - 1,
            same_rows=sorted(first) == list(range(batch)) and rest == list(range(batch, batch + work.rows)),
            rounds=rounds,
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """A regime, timed."""

    regime: str
    source: str
    batch: int
    steps: int
    padded_over_real: float
    trained_share: float
    """Trained tokens over all."""
    gemm_gflops: float
    first_loss: float
    """The first step's loss, computed plainly."""
    rows: list[Row]
    causes: dict[str, float]

    def ratios(self) -> dict[str, float]:
        """How many times as many rows a second our side trains on as each other one."""
        ours = self.rows[0].rows_per_second
        return {row.side: ours / row.rows_per_second for row in self.rows[1:]}

    def show(self, console: Console) -> None:
        """Print it."""
        console.print(_table(self))
        console.print(
            "faster: by rows a second; TRL's packed steps hold other rows than the others', of about as many tokens"
        )
        plainly = "padded rows in float32, softmax in float64"
        console.print(f"first loss off: relative to {self.first_loss:.6f}, computed plainly: {plainly}")
        console.print("our step: " + ", ".join(f"{cause} {share:.1%}" for cause, share in self.causes.items()))
        warn_if_disturbed(console, [row.cores for row in self.rows])
        warn_if_different(console, {row.side: row.losses for row in self.rows if row.side != PACKED})
        for row in self.rows:
            if not row.same_rows:
                warn(console, f"{row.side} trained on other rows")
            if row.side != PACKED and abs(row.first_loss_off) > ROUNDING:
                warn(console, f"{row.side}: the first loss is off by more than rounding ({row.first_loss_off:+.1e})")


def _table(comparison: Comparison) -> Table:
    table = Table(
        title=f"SFT, {comparison.regime}: batches of {comparison.batch} rows, {comparison.source}; "
        f"{comparison.trained_share:.0%} trained; padded / real tokens {comparison.padded_over_real:.2f}; "
        f"GEMM {comparison.gemm_gflops:.0f} GFLOP/s",
        title_justify="left",
    )
    rates = "rows/s", "trained tokens/s", "tokens/step", "cores", "peak GiB", "of GEMM rate"
    for heading in ("", *rates, "ours is faster", "first loss off"):
        table.add_column(heading, justify="right" if heading else "left")
    ratios = comparison.ratios()
    for row in comparison.rows:
        table.add_row(
            row.side,
            f"{row.rows_per_second:.2f}",
            f"{row.trained_per_second:.0f}",
            f"{row.tokens_per_step:.0f}",
            f"{row.cores:.2f}",
            f"{row.peak_gib:.2f}",
            f"{row.share_of_gemm:.0%}",
            f"{ratios[row.side]:.2f} ×" if row.side in ratios else "",
            f"{row.first_loss_off:+.1e}",
        )
    return table


def compare(regime: Regime, asked: Settings) -> Comparison:
    """Time all sides on one regime, in turn."""
    rows, source = rows_of(regime, regime.batch * asked.steps, asked.data, asked.model)
    peer = [str(asked.peer_python), "-m", "benchmarks.peer_trl_sft", "--mode"]
    commands = {
        OURS: [sys.executable, "-m", "benchmarks.our_sft"],
        BEST: [*peer, "best"],
        DEFAULT: [*peer, "default"],
        PACKED: [*peer, "packed"],
    }
    ids = [(row.ids, row.trained) for row in rows]
    results = take_turns(commands, asked, ids, regime.batch)
    work = Work.of(rows, regime.batch, results[OURS])
    first_loss = plain_loss(asked.model, ids[: regime.batch])
    return Comparison(
        regime=regime.name,
        source=source,
        batch=regime.batch,
        steps=asked.steps,
        padded_over_real=padded_over_real(rows, regime.batch),
        trained_share=sum(row.num_trained for row in rows) / sum(row.num_tokens for row in rows),
        gemm_gflops=work.gemm_flops / 1e9,
        first_loss=first_loss,
        rows=[Row.of(side, measured, work, first_loss) for side, measured in results.items()],
        causes=results[OURS][-1].causes,
    )


def main() -> None:
    """Time what the command line asks for."""
    run(settings(__doc__, SFT_REGIMES, "sft_speed.json"), compare)


if __name__ == "__main__":
    main()
