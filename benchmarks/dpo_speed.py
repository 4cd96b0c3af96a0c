"""Our DPO step against TRL's DPOTrainer: same model, token ids, batches, optimizer, float32, in turn within one run.

    python -m benchmarks.dpo_speed [--regime NAME …] [--steps N] [--rounds N] [--model DIR] [--data DIR] [--results DIR]

For every regime three processes run one after the other: ours, TRL at its best, TRL as it comes; `--rounds` repeats
the turn. The table gives medians over the steps after each process's first. TRL is looked for in `.venv-bench`
(`make bench` creates it); all sides see the same torch and transformers.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.driver import Settings, run, settings, take_turns, warn_if_different, warn_if_disturbed
from benchmarks.regimes import DPO_REGIMES, Regime, TokenPair, padded_over_shared, pairs_of
from benchmarks.sides import SideResult

OURS, BEST, DEFAULT = "dpolish", "TRL, its best", "TRL, default"


@dataclass(frozen=True, slots=True)
class Work:
    """What each step after the warm-up holds and needs, and what the machine gives."""

    pairs: int
    tokens: list[int]
    """Real tokens: each prompt once, no padding; the same count for every side."""
    flops: list[float]
    gemm_flops: float

    @staticmethod
    def of(pairs: Sequence[TokenPair], batch: int, ours: Sequence[SideResult]) -> "Work":
        """From the pairs, and from what our side measured in each round."""
        steps = range(batch, len(pairs), batch)
        tokens = [sum(pair.num_tokens for pair in pairs[first : first + batch]) for first in steps]
        rates = [result.gemm_flops for result in ours if result.gemm_flops is not None]
        return Work(batch, tokens, ours[0].needed_flops[1:], median(rates))


@dataclass(frozen=True, slots=True)
class Row:
    """A side in a regime, all rounds together: medians over steps."""

    side: str
    step_seconds: float
    seconds_with_reference: float
    """The reference pass shared out over the steps."""
    pairs_per_second: float
    tokens_per_second: float
    cores: float
    peak_gib: float
    share_of_gemm: float
    losses: list[float]
    rounds: list[list[float]]
    """Seconds of every step of every round, the warm-up included."""

    @staticmethod
    def of(side: str, results: Sequence[SideResult], work: Work) -> "Row":
        """From what the side measured in each round."""
        rounds = [result.step_seconds for result in results]
        seconds = median(second for steps in rounds for second in steps[1:])
        reference = median(result.reference_seconds / len(result.step_seconds) for result in results)

        def rate(amounts: Sequence[float]) -> float:
            return median(a / second for steps in rounds for a, second in zip(amounts, steps[1:], strict=True))

        return Row(
            side=side,
            step_seconds=seconds,
            seconds_with_reference=seconds + reference,
            pairs_per_second=work.pairs / seconds,
            tokens_per_second=rate(work.tokens),
            cores=min(result.cores for result in results),
            peak_gib=max(result.peak_bytes for result in results) / 2**30,
            share_of_gemm=rate(work.flops) / work.gemm_flops,
            losses=results[0].losses,
            rounds=rounds,
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """A regime, timed."""

    regime: str
    source: str
    batch: int
    steps: int
    padded_over_shared: float
    gemm_gflops: float
    rows: list[Row]
    causes: dict[str, float]

    def ratio(self, side: str, *, with_reference: bool) -> float:
        """How many times longer a side's step takes than ours."""
        field = "seconds_with_reference" if with_reference else "step_seconds"
        seconds: dict[str, float] = {row.side: getattr(row, field) for row in self.rows}
        return seconds[side] / seconds[OURS]

    def ratios(self) -> dict[str, float]:
        """Those of all other sides, without and with the reference pass."""
        return {
            f"{side}{', reference pass included' if reference else ''}": self.ratio(side, with_reference=reference)
            for side in (BEST, DEFAULT)
            for reference in (False, True)
        }

    def show(self, console: Console) -> None:
        """Print it."""
        console.print(_table(self))
        ours, best, default = (row.peak_gib for row in self.rows)
        console.print(f"memory: {ours / best:.2f} of its best, {ours / default:.2f} of its default")
        console.print("our step: " + ", ".join(f"{cause} {share:.1%}" for cause, share in self.causes.items()))
        warn_if_disturbed(console, [row.cores for row in self.rows])
        warn_if_different(console, {row.side: row.losses for row in self.rows})


def _table(comparison: Comparison) -> Table:
    table = Table(
        title=f"DPO, {comparison.regime}: batches of {comparison.batch} pairs, {comparison.source}; "
        f"padded / shared tokens {comparison.padded_over_shared:.2f}; GEMM {comparison.gemm_gflops:.0f} GFLOP/s",
        title_justify="left",
    )
    headings = "s/step", "pairs/s", "tokens/s", "cores", "peak GiB", "of GEMM rate", "ours is faster", "with reference"
    for heading in ("", *headings):
        table.add_column(heading, justify="right" if heading else "left")
    for row in comparison.rows:
        ratios = [f"{comparison.ratio(row.side, with_reference=reference):.2f} ×" for reference in (False, True)]
        table.add_row(
            row.side,
            f"{row.step_seconds:.3f}",
            f"{row.pairs_per_second:.2f}",
            f"{row.tokens_per_second:.0f}",
            f"{row.cores:.2f}",
            f"{row.peak_gib:.2f}",
            f"{row.share_of_gemm:.0%}",
            *(ratios if row.side != OURS else ("", f"{row.seconds_with_reference:.3f} s/step")),
        )
    return table


def compare(regime: Regime, asked: Settings) -> Comparison:
    """Time all sides on one regime, in turn."""
    pairs, source = pairs_of(regime, regime.batch * asked.steps, asked.data, asked.model)
    peer = [str(asked.peer_python), "-m", "benchmarks.peer_trl_dpo", "--mode"]
    commands = {
        OURS: [sys.executable, "-m", "benchmarks.our_dpo"],
        BEST: [*peer, "best"],
        DEFAULT: [*peer, "default"],
    }
    ids = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    results = take_turns(commands, asked, ids, regime.batch)
    work = Work.of(pairs, regime.batch, results[OURS])
    return Comparison(
        regime=regime.name,
        source=source,
        batch=regime.batch,
        steps=asked.steps,
        padded_over_shared=padded_over_shared(pairs, regime.batch),
        gemm_gflops=work.gemm_flops / 1e9,
        rows=[Row.of(side, measured, work) for side, measured in results.items()],
        causes=results[OURS][-1].causes,
    )


def main() -> None:
    """Time what the command line asks for."""
    run(settings(__doc__, DPO_REGIMES, "dpo_speed.json"), compare)


if __name__ == "__main__":
    main()
