"""The plan's estimate of memory against what real runs take: three sizes of a random Llama on this machine's CPU.

    python -m benchmarks.scale_memory [--size 10M 40M 135M] [--ranks N] [--results DIR]

Each size trains with DPO for a few steps in a process of its own, as `dpolish dpo` would; with several ranks in one for
each, fully sharded, and the one that takes most counts. Measured is how far the
resident memory grows beyond what the process holds before the run: the interpreter, torch, transformers, and whatever a
first run of a tiny model makes them load. The estimate is that of `dpolish plan`, without its reserve.

The holes of the C library's heap are fitted to these very runs; the rest is counted. Not in the estimate: scratch space
of the matrix kernels, the rows themselves, and the weights' file, whose pages count as resident while they are read.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.sides import ROOT

if TYPE_CHECKING:
    from dpolish.config import Composed, RunConfig

SIZES: Mapping[str, Mapping[str, int]] = {
    "10M": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 16384,
    },
    "40M": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 24576,
    },
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
}
"""Llamas with tied embeddings; the last has the shape of SmolLM2-135M."""
WARM = "warm"
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
PROMPT, ANSWER = 200, 150
"""Bytes, and so tokens, of each row's prompt and answers."""
ROWS, BATCH, TOKENS = 24, 8, 2000
"""Rows, rows of a step, tokens of a micro-batch: three steps of two micro-batches."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run's memory, in bytes."""

    parameters: int
    before: int
    """Resident before the run."""
    peak: int
    """The most that was resident during the run."""
    estimate: dict[str, int]
    """The plan's parts."""

    @property
    def grown(self) -> int:
        """What the run took."""
        return self.peak - self.before

    @property
    def predicted(self) -> int:
        """What the plan said it would take."""
        return sum(self.estimate.values())

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.grown


def measure(size: str, ranks: int = 1) -> Measured:
    """Run one size in fresh processes, one a rank. Raises SystemExit with the last words of one that fails."""
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in ((WARM, TINY), (size, SIZES[size])):
            _write_inputs(Path(folder) / name, sizes)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        started = []
        for rank in range(ranks):
            command = [sys.executable, "-m", "benchmarks.scale_memory", "--child", size, "--folder", folder]
            own = {**environment, "DPOLISH_CACHE": f"{folder}/cache{rank}"}
            words = [*command, "--rank", str(rank), "--ranks", str(ranks)]
            started.append(
                subprocess.Popen(words, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        answers = [process.communicate() for process in started]
        for process, (_, words) in zip(started, answers, strict=True):
            if process.returncode != 0:
                raise SystemExit(f"{process.args} failed with exit code {process.returncode}:\n{words[-3000:]}")
        found = [Measured(**json.loads(answer.splitlines()[-1])) for answer, _ in answers]
        return max(found, key=lambda one: one.grown)


def _free_port() -> int:
    """A port that nobody listens on, a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# --- in the child -----------------------------------------------------------------------------------------------------


def _child(size: str, folder: Path, rank: int, ranks: int) -> Measured:
    from dpolish.assemble import prepare
    from dpolish.world import World

    _train(folder / WARM, 1, rank)
    if ranks > 1:
        counts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {name: str(count) for name, count in counts.items()}
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    composed = _train(folder / size, ranks, rank)
    peak = _status("VmHWM")
    plan = prepare(composed, World(size=ranks, local_size=ranks)).plan
    estimate = {name: value for name, value in asdict(plan.memory).items() if name != "reserve"}
    return Measured(_parameters(folder / size / "model"), before, peak, estimate)


def _write_inputs(folder: Path, sizes: Mapping[str, int]) -> None:
    """A model and rows to train it on."""
    save_random_model(folder / "model", sizes)
    rows = [
        {"prompt": f"{row:03}" + "p" * (PROMPT - 3), "chosen_response": "c" * ANSWER, "rejected_response": "r" * ANSWER}
        for row in range(ROWS)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _train(folder: Path, ranks: int, rank: int) -> "Composed[RunConfig]":
    """Train on what `_write_inputs` wrote, as one of so many ranks."""
    import dpolish

    def composed(output: str) -> "Composed[RunConfig]":
        return dpolish.compose(
            overrides=[
                "trainer.accelerator=cpu",
                f"trainer.devices={ranks}",
                f"model.global_batch_size={BATCH}",
                f"model.data.tokens_per_micro_batch={TOKENS}",
                "model.fsdp_sharding_strategy=full",
                "model.dpo.reference_cache=off",
            ],
            model=str(folder / "model"),
            train=[str(folder / "train.jsonl")],
            output=str(folder / output),
        )

    run = f"run{rank}" if ranks == 1 else "run"  # several ranks warm up each on its own
    dpolish.train(composed(run), say=lambda _: None, sinks=lambda _: ())
    return composed("other")


def save_random_model(folder: Path, sizes: Mapping[str, int]) -> None:
    """A Llama with random weights and a tokenizer that has one token for every byte."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**sizes, **special, max_position_embeddings=2048)).save_pretrained(folder)


def _parameters(folder: Path) -> int:
    from dpolish.facts import read_model_facts

    return read_model_facts(folder).num_parameters


def _status(name: str) -> int:
    """Bytes of one line of /proc/self/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


# --- what is shown ----------------------------------------------------------------------------------------------------


def _table(measured: Mapping[str, Measured], ranks: int) -> Table:
    title = f"Memory of a DPO run on the CPU, float32, GB a rank of {ranks}: estimated and measured"
    table = Table(title=title, title_justify="left")
    parts = list(next(iter(measured.values())).estimate)
    for heading in ("", "parameters", *parts, "estimated", "measured", "ratio", "before the run"):
        table.add_column(heading, justify="right" if heading else "left")
    for size, one in measured.items():
        cells = (*(one.estimate[part] for part in parts), one.predicted, one.grown)
        shown = [f"{cell / 1e9:.2f}" for cell in cells]
        table.add_row(size, f"{one.parameters / 1e6:.1f}M", *shown, f"{one.ratio:.2f}", f"{one.before / 1e9:.2f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", nargs="+", choices=list(SIZES), default=list(SIZES), help="which sizes (default: all)"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder to write scale_memory.json to"
    )
    parser.add_argument("--child", choices=list(SIZES), help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, default=1, help="processes of each run (default: 1)")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.child:
        print(json.dumps(asdict(_child(asked.child, asked.folder, asked.rank, asked.ranks))))
        return
    measured = {size: measure(size, asked.ranks) for size in asked.size}
    Console(width=170).print(_table(measured, asked.ranks))
    asked.results.mkdir(parents=True, exist_ok=True)
    path = asked.results / "scale_memory.json"
    path.write_text(json.dumps({size: {**asdict(one), "ratio": one.ratio} for size, one in measured.items()}, indent=1))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
