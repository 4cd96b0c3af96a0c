"""What one side of the comparison is asked for and answers with; files, so that each side runs in a process of its own.

pairs.json   [[prompt ids, chosen ids, rejected ids], …]   rows in order, `batch` of them in each optimizer step
answer.json  the fields of SideResult
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent

BETA = 0.1
LEARNING_RATE = 1e-5
BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0
"""One objective and one optimizer on both sides, AdamW at a constant rate: equal losses prove equal work."""


@dataclass(frozen=True, slots=True)
class SideResult:
    """What a side measured of itself."""

    step_seconds: list[float]
    """From the end of one step to the end of the next, data preparation and metrics included; the first warms up."""
    losses: list[float]
    """Loss of every step."""
    reference_seconds: float
    """Scoring the reference before training; 0 where it is scored within the steps."""
    cores: float
    """Cores that the process kept busy while it trained: fewer than there are when something else ran besides."""
    peak_bytes: int
    """Largest resident memory of the process, up to the end of training."""
    gemm_flops: float | None = None
    """Operations a second that float32 products of the model's own shapes reach here, before and after training."""
    needed_flops: list[float] = field(default_factory=list)
    """Operations that each step cannot do without: see benchmarks/ceiling.py."""
    causes: dict[str, float] = field(default_factory=dict)
    """Where one step's time goes: share by cause."""

    @property
    def seconds(self) -> float:
        """Median seconds of a step after the warm-up step."""
        return median(self.step_seconds[1:])


def side_arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line that both sides understand."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--pairs", type=Path, required=True, help="JSON list of [prompt, chosen, rejected] ids")
    parser.add_argument("--batch", type=int, required=True, help="pairs in one step")
    parser.add_argument("--answer", type=Path, required=True, help="where to write the result")
    return parser


def read_pairs(path: Path) -> list[tuple[list[int], list[int], list[int]]]:
    """The pairs of a pairs file."""
    return [(prompt, chosen, rejected) for prompt, chosen, rejected in json.loads(path.read_text())]


def write_result(path: Path, result: SideResult) -> None:
    """Write a side's answer."""
    path.write_text(json.dumps(asdict(result)))


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_side(
    command: Sequence[str], model: Path, pairs: Sequence[tuple[list[int], list[int], list[int]]], batch: int
) -> SideResult:
    """Run one side in a fresh process and read its answer; raises SystemExit with its last words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        pairs_path, answer_path = Path(folder, "pairs.json"), Path(folder, "answer.json")
        pairs_path.write_text(json.dumps(pairs))
        arguments = ["--model", model, "--pairs", pairs_path, "--batch", batch, "--answer", answer_path]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder, "TMPDIR": folder}
        done = subprocess.run(
            [*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
        return SideResult(**json.loads(answer_path.read_text()))
