"""What one side of a comparison is asked for and answers with; files, so that each side runs in a process of its own.

rows.json    rows in order
             DPO: [[prompt ids, chosen ids, rejected ids], …]
             SFT: [[ids, for each of them 1 where it is trained on, else 0], …]
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

ROOT = Path(__file__).parent.parent

BETA = 0.1
LEARNING_RATE = 1e-5
BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0
"""One objective and one optimizer on all sides, AdamW at a constant rate: equal losses prove equal work."""


@dataclass(frozen=True, slots=True)
class SideResult:
    """What a side measured of itself."""

    step_seconds: list[float]
    """From the end of one step to the end of the next, data preparation and metrics included; the first warms up."""
    losses: list[float]
    """Loss of every step."""
    cores: float
    """Cores that the process kept busy while it trained: fewer than there are when something else ran besides."""
    peak_bytes: int
    """Largest resident memory of the process, up to the end of training."""
    reference_seconds: float = 0.0
    """DPO: scoring the reference before training; 0 where it is scored within the steps."""
    step_rows: list[list[int]] = field(default_factory=list)
    """SFT: which rows each step held, recognised by their tokens in what reached the model."""
    gemm_flops: float | None = None
    """Operations a second that float32 products of the model's own shapes reach here, before and after training."""
    needed_flops: list[float] = field(default_factory=list)
    """Operations that each step cannot do without: see benchmarks/ceiling.py."""
    causes: dict[str, float] = field(default_factory=dict)
    """Where one step's time goes: share by cause."""


def side_arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line that all sides understand."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--rows", type=Path, required=True, help="JSON list of rows of token ids")
    parser.add_argument("--batch", type=int, required=True, help="rows in one step")
    parser.add_argument("--answer", type=Path, required=True, help="where to write the result")
    return parser


def read_pairs(path: Path) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) of every row of a DPO file."""
    return [(prompt, chosen, rejected) for prompt, chosen, rejected in json.loads(path.read_text())]


def read_demonstrations(path: Path) -> list[tuple[list[int], list[int]]]:
    """(ids, trained) of every row of an SFT file."""
    return [(ids, trained) for ids, trained in json.loads(path.read_text())]


def write_result(path: Path, result: SideResult) -> None:
    """Write a side's answer."""
    path.write_text(json.dumps(asdict(result)))


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_side(command: Sequence[str], model: Path, rows: Sequence[Sequence[list[int]]], batch: int) -> SideResult:
    """Run one side in a fresh process and read its answer; raises SystemExit with its last words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        rows_path, answer_path = Path(folder, "rows.json"), Path(folder, "answer.json")
        rows_path.write_text(json.dumps(rows))
        arguments = ["--model", model, "--rows", rows_path, "--batch", batch, "--answer", answer_path]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": folder, "TMPDIR": folder}
        done = subprocess.run(
            [*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
        return SideResult(**json.loads(answer_path.read_text()))
