"""Our DPO step against TRL's DPOTrainer: same model, token ids, batches, optimizer, float32, in turn within one run.

    python -m benchmarks.dpo_speed [--regime NAME …] [--steps N] [--rounds N] [--model DIR] [--data DIR] [--json PATH]

For every regime three processes run one after the other: ours, TRL at its best, TRL as it comes; `--rounds` repeats
the turn. The table gives medians over the steps after each process's first. TRL is looked for in `.venv-bench`
(`make bench` creates it); all sides see the same torch and transformers.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.regimes import REGIMES, Regime, TokenPair, padded_over_shared, pairs_of
from benchmarks.sides import ROOT, SideResult, run_side
from dpolish.demo.model import demo_model

OURS, BEST, DEFAULT = "dpolish", "TRL, its best", "TRL, default"
TOLERANCE = 3e-4
"""Largest relative difference between the losses of two sides that did the same work in float32."""
_QUIET = 0.85
"""Share of the processors that a side has to itself in a fair measurement."""


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
    losses_agree: bool

    def ratio(self, side: str, *, with_reference: bool) -> float:
        """How many times longer a side's step takes than ours."""
        field = "seconds_with_reference" if with_reference else "step_seconds"
        seconds: dict[str, float] = {row.side: getattr(row, field) for row in self.rows}
        return seconds[side] / seconds[OURS]


def compare(regime: Regime, arguments: argparse.Namespace, model: Path) -> Comparison:
    """Time all sides on one regime, in turn."""
    pairs, source = pairs_of(regime, regime.batch * arguments.steps, arguments.data, model)
    ids = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    commands = {
        OURS: [sys.executable, "-m", "benchmarks.our_dpo"],
        BEST: [str(arguments.peer_python), "-m", "benchmarks.peer_trl", "--mode", "best"],
        DEFAULT: [str(arguments.peer_python), "-m", "benchmarks.peer_trl", "--mode", "default"],
    }
    results: dict[str, list[SideResult]] = {side: [] for side in commands}
    for _ in range(arguments.rounds):
        for side, command in commands.items():
            results[side].append(run_side(command, model, ids, regime.batch))
    work = Work.of(pairs, regime.batch, results[OURS])
    rows = [Row.of(side, measured, work) for side, measured in results.items()]
    return Comparison(
        regime=regime.name,
        source=source,
        batch=regime.batch,
        steps=arguments.steps,
        padded_over_shared=padded_over_shared(pairs, regime.batch),
        gemm_gflops=work.gemm_flops / 1e9,
        rows=rows,
        causes=results[OURS][-1].causes,
        losses_agree=all(_agree(rows[0].losses, row.losses) for row in rows[1:]),
    )


def _agree(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    return len(ours) == len(theirs) and all(abs(a - b) <= TOLERANCE * abs(b) for a, b in zip(ours, theirs, strict=True))


def show(comparison: Comparison, console: Console) -> None:
    """Print one regime."""
    table = Table(
        title=f"{comparison.regime}: batches of {comparison.batch} pairs, {comparison.source}; "
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
    console.print(table)
    memory = {row.side: row.peak_gib for row in comparison.rows}
    console.print(
        f"memory: {memory[OURS] / memory[BEST]:.2f} of its best, {memory[OURS] / memory[DEFAULT]:.2f} of its default"
    )
    console.print("our step: " + ", ".join(f"{cause} {share:.1%}" for cause, share in comparison.causes.items()))
    if min(row.cores for row in comparison.rows) < _QUIET * int(
        os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1
    ):
        console.print(
            "WARNING: something else took processor time meanwhile (see cores): time it again", style="bold red"
        )
    if not comparison.losses_agree:
        losses = "; ".join(f"{row.side} {[round(loss, 4) for loss in row.losses]}" for row in comparison.rows)
        console.print(f"WARNING: the losses differ, so the work was not the same: {losses}", style="bold red")
    console.print()


def main() -> None:
    """Time the regimes, print each as it is done, write JSON."""
    arguments = _arguments()
    if not arguments.peer_python.is_file():
        raise SystemExit(f"{arguments.peer_python} is missing: `make bench` creates it, or give --peer-python")
    console = Console(width=132)
    model = arguments.model or demo_model(arguments.cache)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    console.print(f"{_processor()}, {os.cpu_count()} CPUs; {versions}; {model.name}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    comparisons = []
    for regime in REGIMES:
        if regime.name in arguments.regime:
            comparisons.append(compare(regime, arguments, model))
            show(comparisons[-1], console)
            arguments.json.write_text(json.dumps(_report(comparisons), indent=1) + "\n")  # what is timed is kept
    console.print(f"written: {arguments.json}")


def _arguments() -> argparse.Namespace:
    names = [regime.name for regime in REGIMES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regime", nargs="+", choices=names, default=names, help="which to time (default: all)")
    parser.add_argument(
        "--steps", type=int, default=5, help="optimizer steps of each process, the first of which warms up"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often all sides take their turn")
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: SmolLM2-135M-Instruct)")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with real rows, if any"
    )
    parser.add_argument(
        "--json", type=Path, default=ROOT / "bench" / "results" / "dpo_speed.json", help="where to write"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "dpolish", help="where the model is kept"
    )
    parser.add_argument(
        "--peer-python", type=Path, default=ROOT / ".venv-bench" / "bin" / "python", help="Python with TRL"
    )
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: the first step warms up, so at least 2")
    return arguments


def _report(comparisons: Sequence[Comparison]) -> dict[str, object]:
    """Everything measured, with the ratios spelled out."""
    ratios = {
        comparison.regime: {
            f"{side}{', reference pass included' if reference else ''}": comparison.ratio(
                side, with_reference=reference
            )
            for side in (BEST, DEFAULT)
            for reference in (False, True)
        }
        for comparison in comparisons
    }
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "ratios": ratios,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(": ", maxsplit=1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
