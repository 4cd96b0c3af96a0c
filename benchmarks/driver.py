"""What both comparisons share: the command line, sides that take their turn, what is said of the machine, the JSON."""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console

from benchmarks.regimes import Regime
from benchmarks.sides import ROOT, SideResult, run_side
from dpolish.demo.model import demo_model

TOLERANCE = 3e-4
"""Largest relative difference between the losses of two sides that did the same work in float32."""
_QUIET = 0.85
"""Share of the processors that a side has to itself in a fair measurement."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for."""

    regimes: tuple[Regime, ...]
    steps: int
    rounds: int
    model: Path
    data: Path
    peer_python: Path
    json: Path


class Comparison(Protocol):
    """A regime, timed: a dataclass."""

    @property
    def regime(self) -> str:
        """Its name."""

    def ratios(self) -> Mapping[str, float]:
        """How many times faster our side is than each other one."""

    def show(self, console: Console) -> None:
        """Print it."""


def settings(description: str | None, regimes: Sequence[Regime], name: str) -> Settings:
    """The command line, and the model unpacked; results go to a file called `name`."""
    names = [regime.name for regime in regimes]
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help=f"folder to write {name} to"
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
    if not arguments.peer_python.is_file():
        parser.error(f"{arguments.peer_python} is missing: `make bench` creates it, or give --peer-python")
    return Settings(
        regimes=tuple(regime for regime in regimes if regime.name in arguments.regime),
        steps=arguments.steps,
        rounds=arguments.rounds,
        model=arguments.model or demo_model(arguments.cache),
        data=arguments.data,
        peer_python=arguments.peer_python,
        json=arguments.results / name,
    )


C = TypeVar("C", bound=Comparison)


def run(asked: Settings, compare: Callable[[Regime, Settings], C]) -> None:
    """Time the regimes, print each as it is done, write JSON."""
    console = Console(width=132)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    console.print(f"{_processor()}, {os.cpu_count()} CPUs; {versions}; {asked.model.name}")
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    comparisons: list[C] = []
    for regime in asked.regimes:
        comparisons.append(compare(regime, asked))
        comparisons[-1].show(console)
        console.print()
        asked.json.write_text(json.dumps(_report(comparisons), indent=1) + "\n")  # what is timed is kept
    console.print(f"written: {asked.json}")


def take_turns(
    commands: Mapping[str, Sequence[str]], asked: Settings, rows: Sequence[Sequence[list[int]]], batch: int
) -> dict[str, list[SideResult]]:
    """What each side measured in each round, every round all sides one after the other."""
    results: dict[str, list[SideResult]] = {side: [] for side in commands}
    for _ in range(asked.rounds):
        for side, command in commands.items():
            results[side].append(run_side(command, asked.model, rows, batch))
    return results


def same_losses(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """True where two sides lost the same in every step."""
    return len(ours) == len(theirs) and all(abs(a - b) <= TOLERANCE * abs(b) for a, b in zip(ours, theirs, strict=True))


def warn(console: Console, message: str) -> None:
    """Print what makes the figures above it doubtful."""
    console.print(f"WARNING: {message}", style="bold red")


def warn_if_disturbed(console: Console, cores: Iterable[float]) -> None:
    """A side that did not have the processors to itself was not timed fairly."""
    if min(cores) < _QUIET * int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1):
        warn(console, "something else took processor time meanwhile (see cores): time it again")


def warn_if_different(console: Console, losses: Mapping[str, Sequence[float]]) -> None:
    """Sides with other losses did other work."""
    ours, *others = losses.values()
    if not all(same_losses(ours, theirs) for theirs in others):
        listed = "; ".join(f"{side} {[round(loss, 4) for loss in of_side]}" for side, of_side in losses.items())
        warn(console, f"the losses differ, so the work was not the same: {listed}")


def _report(comparisons: Sequence[C]) -> dict[str, object]:
    """Everything measured, with the ratios spelled out."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "ratios": {comparison.regime: comparison.ratios() for comparison in comparisons},
        "comparisons": [asdict(comparison) for comparison in comparisons],  # type: ignore[call-overload]
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(": ", maxsplit=1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
