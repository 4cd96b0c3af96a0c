"""How the product scales: 1, 2 and 4 ranks on this machine, and what 8 to 1,024 would do.

    python -m benchmarks.scale [--ranks 1 2 4] [--size 10M] [--steps N] [--batch N] [--data DIR] [--results DIR]

Measured are runs of `dpolish dpo` with `trainer.devices=N trainer.accelerator=cpu` on a random model, fully sharded,
the same rows and global batches whatever N. The cores are divided: each rank has at least one thread, and where there
are more ranks than cores they share them. Then the simulation takes the speed of one rank, deals rows as the product
does, and sends bytes over a modelled network; and the same for an 8B model on GPUs, whose speed is assumed. Every
assumption is printed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

from rich.console import Console
from rich.table import Table

from benchmarks.regimes import DPO_REGIMES, Regime, TokenPair, generate, pairs_of
from benchmarks.scale_balance import BATCHES, Balance, balance, batches, imbalance, loads
from benchmarks.scale_memory import SIZES, save_random_model
from benchmarks.scale_model import Network, Simulated, Speed, simulate
from benchmarks.sides import ROOT
from dpolish.demo.model import demo_model
from dpolish.errors import ModelError
from dpolish.facts import ModelFacts, read_model_facts
from dpolish.forecast import architecture_shapes
from dpolish.layout import RankLayout
from dpolish.planning.gpus import DEFAULT_GPU, GPUS, PER_NODE, USED_SHARE
from dpolish.planning.memory import Work
from dpolish.planning.ranks import flops_of
from dpolish.planning.traffic import traffic_of

CONVERSATIONS: Regime = next(regime for regime in DPO_REGIMES if regime.name == "conversations")
SIMULATED = (8, 16, 32, 64, 128, 256, 512, 1024)
ROWS_PER_RANK = 16
"""Pairs of each rank in a simulated step: the global batch grows with the ranks."""
STRONG_BATCH = 512
"""The global batch that more and more ranks share, as far as each has a row."""
BUDGET = 2048
"""Tokens of a micro-batch."""
GPU_BUDGET = 8192
"""The same on a GPU."""
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
"""Llama 3 8B."""
QUIET = 0.8
"""Share of the processors that a run has to itself in a fair measurement."""
IMBALANCE_RANKS = 8
IMBALANCE_LIMIT = 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of so many ranks on this machine: medians over its steps after the first."""

    ranks: int
    threads: int
    """Of each rank."""
    step_seconds: float
    tokens_per_second: float
    imbalance: float
    sent_bytes: float
    """By each rank in one step, by the plan's count."""
    cores: float
    """Cores that all ranks kept busy, start-up included."""
    losses: list[float]
    """The first ones: the same whatever the ranks."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that is printed, and written as JSON."""

    model: str
    parameters: int
    rows: str
    """Where the lengths of rows come from."""
    measured: list[Measured]
    balances: list[Balance]
    network: Network
    seconds_per_token: float
    simulated: list[Simulated]
    shared_batch: list[Simulated]
    gpu_network: Network
    gpu_seconds_per_token: float
    on_gpus: list[Simulated]
    """An 8B model."""


# --- measured ---------------------------------------------------------------------------------------------------------


def measure(model: Path, pairs: Sequence[TokenPair], ranks: int, steps: int, batch: int) -> Measured:
    """Run `dpolish dpo` on so many ranks. Raises SystemExit with its last words if it fails."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = folder / "train.jsonl"
        train.write_text("".join(json.dumps(_row(index, pair)) + "\n" for index, pair in enumerate(pairs)))
        command = [
            *(sys.executable, "-m", "dpolish", "dpo", "--model", str(model), "--train", str(train)),
            *("--output", str(folder / "run"), "trainer.accelerator=cpu", f"trainer.devices={ranks}"),
            *(f"model.global_batch_size={batch}", f"trainer.dpo.max_steps={steps}", "trainer.dpo.max_epochs=100"),
            *("model.optim.sched.name=Constant", "model.optim.lr=1e-6", f"model.data.tokens_per_micro_batch={BUDGET}"),
            "model.fsdp_sharding_strategy=full",
        ]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "DPOLISH_CACHE": f"{folder}/cache",
        }
        start, busy = time.perf_counter(), _child_seconds()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
        cores = (_child_seconds() - busy) / (time.perf_counter() - start)
        records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    timed = [record for record in records if record["split"] == "train"]
    sizes = [pair.num_tokens for pair in pairs]
    dealt = [loads(rows, ranks) for rows in batches(sizes, batch, steps)]
    tokens = mean(sum(parts) for parts in dealt)
    return Measured(
        ranks=ranks,
        threads=threads,
        step_seconds=median(record["step_time"] for record in timed[1:]),
        tokens_per_second=median(record["tokens_per_second"] for record in timed[1:]),
        imbalance=mean(imbalance(parts) for parts in dealt),
        sent_bytes=_sent(read_model_facts(model), ranks, tokens, max(map(max, dealt))),
        cores=cores,
        losses=[record["loss"] for record in timed[:3]],
    )


def _child_seconds() -> float:
    """Processor time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _row(index: int, pair: TokenPair) -> dict[str, str]:
    """A pair of as many bytes, which are the random model's tokens; no two alike."""
    number = str(index).zfill(5)
    prompt, chosen, rejected = (len(part) for part in (pair.prompt, pair.chosen, pair.rejected))
    return {
        "prompt": (number + "p" * prompt)[:prompt],
        "chosen_response": "c" * chosen,
        "rejected_response": "r" * rejected,
    }


def _sent(model: ModelFacts, ranks: int, tokens: float, fullest: int) -> float:
    layout = RankLayout(devices=ranks, shard=ranks)
    passes = -(-fullest // BUDGET)
    collectives = traffic_of(model, layout, Work("cpu", "32", tokens=BUDGET), passes, tokens / ranks / passes)
    return sum(one.sent for one in collectives)


# --- all of it --------------------------------------------------------------------------------------------------------


def report(arguments: argparse.Namespace, console: Console) -> Report:
    """Measure, deal, simulate."""
    rows, source = _lengths(arguments.data, arguments.tokenizer or _tokenizer(arguments.cache))
    sizes = [pair.num_tokens for pair in rows]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        save_random_model(model, SIZES[arguments.size])
        facts = read_model_facts(model)
        measured = []
        for ranks in arguments.ranks:
            measured.append(measure(model, rows, ranks, arguments.steps, arguments.batch))
            console.print(f"measured: {ranks} ranks, {measured[-1].step_seconds:.2f} s a step")
    seconds_per_token = 1 / next(one for one in measured if one.ranks == min(arguments.ranks)).tokens_per_second
    network = Network(arguments.per_node, arguments.latency, arguments.within_node, arguments.between_nodes)

    speed = Speed(seconds_per_token, Work("cpu", "32", tokens=BUDGET))
    large, gpu_speed, gpu_network = _gpus(mean(sizes))
    return Report(
        model=f"random Llama, {arguments.size}",
        parameters=facts.num_parameters,
        rows=source,
        measured=measured,
        balances=[balance(sizes, batch, IMBALANCE_RANKS) for batch in BATCHES],
        network=network,
        seconds_per_token=seconds_per_token,
        simulated=[simulate(facts, sizes, ranks, ROWS_PER_RANK * ranks, speed, network) for ranks in SIMULATED],
        shared_batch=[
            simulate(facts, sizes, ranks, STRONG_BATCH, speed, network) for ranks in SIMULATED if ranks <= STRONG_BATCH
        ],
        gpu_network=gpu_network,
        gpu_seconds_per_token=gpu_speed.seconds_per_token,
        on_gpus=[simulate(large, sizes, ranks, ROWS_PER_RANK * ranks, gpu_speed, gpu_network) for ranks in SIMULATED],
    )


def _gpus(context: float) -> tuple[ModelFacts, Speed, Network]:
    """An 8B model on the usual GPU, at the share of its peak that the plan assumes."""
    gpu = GPUS[DEFAULT_GPU]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA_8B))
        model = read_model_facts(Path(folder), architecture_shapes(Path(folder)))
    seconds = flops_of(model, 1, context, recompute=False) / (USED_SHARE * gpu.bf16_flops)
    network = Network(PER_NODE, within_node=gpu.within_node, between_nodes=gpu.between_nodes)
    return model, Speed(seconds, Work("cuda", "bf16", tokens=GPU_BUDGET)), network


def _tokenizer(cache: Path) -> Path | None:
    """The demonstration's model, if its package is installed."""
    try:
        return demo_model(cache)
    except ModelError:
        return None


def _lengths(data: Path, tokenizer: Path | None) -> tuple[list[TokenPair], str]:
    """Pairs as long as real conversations: those of the data folder where it and a tokenizer are there."""
    file = data / str(CONVERSATIONS.file)
    if tokenizer is None or not file.is_file():
        return generate(CONVERSATIONS, 300, 1000), "lengths of conversations, drawn from their quantiles"
    count = len(json.loads(file.read_text(encoding="utf-8")))
    pairs, source = pairs_of(CONVERSATIONS, count, data, tokenizer)
    return pairs, f"{source} in tokens of {tokenizer.name}"


def show(made: Report, console: Console) -> None:
    """Print it."""
    console.print(_measured_table(made))
    cores = len(os.sched_getaffinity(0))
    if any(one.cores < QUIET * min(cores, one.ranks * one.threads) for one in made.measured):
        console.print(
            "WARNING: something else took processor time meanwhile (see cores): time it again", style="bold red"
        )
    console.print(_balance_table(made))
    missed = [one for one in made.balances if one.average > IMBALANCE_LIMIT]
    if missed:
        sizes = ", ".join(str(one.batch) for one in missed)
        console.print(f"WARNING: above {IMBALANCE_LIMIT:.0%} at global batches of {sizes}", style="bold red")
    console.print(
        f"assumed: every rank computes as fast as the one measured, {1 / made.seconds_per_token:,.0f} tokens/s; "
        f"FSDP within a node, copies between nodes; {made.network}"
    )
    console.print(_simulated_table(f"Simulated, {ROWS_PER_RANK} pairs a rank", made.simulated))
    console.print(_simulated_table(f"Simulated, one global batch of {STRONG_BATCH} pairs", made.shared_batch))
    console.print(
        f"assumed: Llama 3 8B on {DEFAULT_GPU} at {USED_SHARE:.0%} of its bf16 peak, "
        f"{1 / made.gpu_seconds_per_token:,.0f} tokens/s a GPU; FSDP within a node, copies between nodes; "
        f"{made.gpu_network}"
    )
    console.print(_simulated_table(f"Simulated GPUs, {ROWS_PER_RANK} pairs each: nothing measured", made.on_gpus))


def _measured_table(made: Report) -> Table:
    cores = len(os.sched_getaffinity(0))
    table = Table(
        title=f"Measured on {cores} cores: {made.model}, {made.parameters:,} parameters, {made.rows}",
        title_justify="left",
    )
    for heading in (
        "ranks",
        "threads each",
        "s/step",
        "tokens/s",
        "speed-up",
        "cores",
        "token imbalance",
        "MB sent a rank",
        "losses",
    ):
        table.add_column(heading, justify="right")
    alone = made.measured[0]
    for one in made.measured:
        table.add_row(
            str(one.ranks),
            str(one.threads),
            f"{one.step_seconds:.3f}",
            f"{one.tokens_per_second:,.0f}",
            f"{alone.step_seconds / one.step_seconds:.2f} ×",
            f"{one.cores:.2f}",
            f"{one.imbalance:.2%}",
            f"{one.sent_bytes / 1e6:,.0f}",
            " ".join(f"{loss:.6f}" for loss in one.losses),
        )
    return table


def _balance_table(made: Report) -> Table:
    table = Table(
        title=f"Token imbalance between {IMBALANCE_RANKS} ranks, fullest over mean: {made.rows}", title_justify="left"
    )
    for heading in ("global batch", "average", "worst", "as many rows each"):
        table.add_column(heading, justify="right")
    for one in made.balances:
        table.add_row(str(one.batch), f"{one.average:.2%}", f"{one.worst:.2%}", f"{one.by_rows:.1%}")
    return table


def _simulated_table(title: str, rows: Sequence[Simulated]) -> Table:
    table = Table(title=title, title_justify="left")
    headings = (
        "global batch",
        "imbalance",
        "compute s",
        "MB sent a rank",
        "exchange s",
        "s/step",
        "tokens/s",
        "efficiency",
    )
    for heading in ("ranks", *headings):
        table.add_column(heading, justify="right")
    for one in rows:
        table.add_row(
            f"{one.ranks:,}",
            f"{one.batch:,}",
            f"{one.imbalance:.2%}",
            f"{one.compute_seconds:.3f}",
            f"{one.sent_bytes / 1e6:,.0f}",
            f"{one.exchange_seconds:.3f}",
            f"{one.step_seconds:.3f}",
            f"{one.tokens_per_second:,.0f}",
            f"{one.efficiency:.0%}",
        )
    return table


def main() -> None:
    """Do what the command line asks for."""
    network = Network()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="ranks to measure here")
    parser.add_argument("--size", choices=list(SIZES), default="10M", help="random model (default: 10M)")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of a run, the first of which warms up")
    parser.add_argument("--batch", type=int, default=32, help="pairs of a measured step")
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with real rows, if any"
    )
    parser.add_argument("--tokenizer", type=Path, help="makes tokens of them (default: SmolLM2's, if installed)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "dpolish", help="where that is kept")
    parser.add_argument("--per-node", type=int, default=network.per_node, help="ranks of a simulated node")
    parser.add_argument("--latency", type=float, default=network.latency, help="α, seconds")
    parser.add_argument("--within-node", type=float, default=network.within_node, help="β, bytes a second")
    parser.add_argument("--between-nodes", type=float, default=network.between_nodes, help="β, bytes a second and rank")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where scale.json goes")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: the first step warms up, so at least 2")
    console = Console(width=140)
    made = report(arguments, console)
    show(made, console)
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / "scale.json"
    path.write_text(json.dumps(asdict(made), indent=1) + "\n")
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
