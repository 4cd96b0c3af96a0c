"""`dpolish demo`: a real model, SFT, then DPO on a preference worth having, and what these few minutes change."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dpolish import api
from dpolish.config.compose import Composed, compose
from dpolish.config.schema import DpoConfig, RunConfig, SftConfig
from dpolish.demo.model import demo_model
from dpolish.demo.pairs import DEMO_PROMPTS, write_demonstrations, write_pairs
from dpolish.files import cache_root
from dpolish.records import StepRecord
from dpolish.run_directory import require_free
from dpolish.training.generate import answers

SFT_SETTINGS = (
    "model.data.train_ds.global_batch_size=8",
    "model.data.train_ds.max_seq_length=256",
    "model.optim.lr=2e-5",
    "model.optim.sched.warmup_steps=2",
    "model.optim.sched.constant_steps=0",
    "model.optim.sched.min_lr=2e-6",
    "trainer.sft.val_check_interval=4",
)
DPO_SETTINGS = (
    "model.global_batch_size=8",
    "model.data.seq_length=256",
    "model.dpo.ref_policy_kl_penalty=0.1",
    "model.dpo.sft_loss_weight=0.3",
    "model.dpo.sft_average_log_probs=true",
    "model.optim.lr=3e-5",
    "model.optim.weight_decay=0.0",
    "model.optim.sched.warmup_steps=4",
    "model.optim.sched.constant_steps=0",
    "model.optim.sched.min_lr=3e-6",
    "trainer.dpo.val_check_interval=0.5",
)
"""Small batches, a larger learning rate than the tutorial's and some SFT: a few hundred short pairs must be enough."""


def run_demo(output: Path, seed: int, say: Callable[[str], None]) -> None:
    """SFT, then DPO from its model, into `sft` and `dpo` below `output`; then what changed and what to try next.

    What changed: held-out perplexity, accuracy and reward margin before and after, and answers side by side.
    """
    started = time.monotonic()
    for name in ("sft", "dpo"):
        require_free(output / name)
    folder = demo_model(cache_root() / "models")
    shown = DEMO_PROMPTS[:2]
    stages = {"as it came": answers(folder, shown)}

    say("1. SFT: answer questions, from the demonstrations of somebody who likes to talk.")
    files = write_demonstrations(output / "data", seed)
    tuned = api.train(_composed("sft", folder, files, output), argv=("dpolish", "demo"), say=say)
    stages["after SFT"] = answers(tuned.model, shown)

    say("")
    say("2. DPO: answer plainly, without flattery and lectures around the answer.")
    files = write_pairs(output / "data", seed)
    polished = api.train(_composed("dpo", tuned.model, files, output), argv=("dpolish", "demo"), say=say)
    stages["after DPO"] = answers(polished.model, shown)

    for line in _summary(tuned.records, polished.records, stages):
        say(line)
    say("")
    say(f"{(time.monotonic() - started) / 60:.1f} minutes. The runs are in {output}/sft and {output}/dpo:")
    say("  metrics.jsonl, config.yaml, model/")
    say("Try next:")
    say(f"  dpolish dpo --config {output}/dpo/config.yaml --output {output}/beta model.dpo.ref_policy_kl_penalty=0.3")
    say("    another β: the reference is not scored again")
    say(f"  dpolish check {files[0]} --validation {files[1]} --model {tuned.model}")
    say("    what is wrong with data, before it costs anything; then put your files in its place")


def _composed(verb: str, model: Path, files: tuple[Path, Path], output: Path) -> Composed[RunConfig]:
    settings, root = (SFT_SETTINGS, SftConfig) if verb == "sft" else (DPO_SETTINGS, DpoConfig)
    train, held_out = files
    return compose(
        None,
        settings,
        root=root,
        model=str(model),
        train=[str(train)],
        validation=[str(held_out)],
        output=str(output / verb),
    )


def _summary(
    tuned: Sequence[StepRecord], polished: Sequence[StepRecord], stages: Mapping[str, Sequence[str]]
) -> list[str]:
    """The table and the answers.

    Before DPO policy and reference are one model: every reward is 0, no pair is won.
    """
    first, last = _validation(tuned)[0], _validation(tuned)[-1]
    metrics = _validation(polished)[-1].metrics
    lines = [
        "",
        f"SFT, held out             step {first.step:>2}  step {last.step}",
        f"  perplexity             {first.metrics['perplexity']:8.2f} {last.metrics['perplexity']:8.2f}",
        "",
        "DPO, held out              before    after",
        f"  accuracy                  0.000    {metrics['acc']:.3f}",
        f"  reward margin             0.000    {metrics['rewards_margin_mean']:.3f}",
        f"  reward, chosen            0.000   {metrics['rewards_chosen_mean']:+.3f}",
        f"  reward, rejected          0.000   {metrics['rewards_rejected_mean']:+.3f}",
    ]
    for index, prompt in enumerate(DEMO_PROMPTS[: len(stages["as it came"])]):
        lines += ["", f"  {prompt}"]
        lines += [f"    {stage + ':':<12} {_one_line(found[index])}" for stage, found in stages.items()]
    return lines


def _validation(records: Sequence[StepRecord]) -> list[StepRecord]:
    return [record for record in records if record.split == "val"]


def _one_line(text: str) -> str:
    return " ".join(text.split())
