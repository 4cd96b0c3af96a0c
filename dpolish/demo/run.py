"""`dpolish demo`: a real model, a preference worth having, and what a few minutes of DPO change."""

import time
from collections.abc import Callable
from pathlib import Path

from dpolish import api
from dpolish.config.compose import compose
from dpolish.demo.model import demo_model
from dpolish.demo.pairs import DEMO_PROMPTS, write_pairs
from dpolish.records import StepRecord
from dpolish.reference.cache import default_root
from dpolish.training.generate import answers

SETTINGS = (
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
    """Train, and print what changed and what to try next.

    What changed: held-out accuracy and reward margin before and after, and answers side by side.
    """
    started = time.monotonic()
    api.require_free(output)
    say("The preference: answer plainly, without flattery and lectures around the answer.")
    folder = demo_model(default_root().parent / "models")
    train, held_out = write_pairs(output / "data", seed)
    before = answers(folder, DEMO_PROMPTS[:2])
    composed = compose(
        None, SETTINGS, model=str(folder), train=[str(train)], validation=[str(held_out)], output=str(output)
    )
    result = api.train(composed, argv=("dpolish", "demo"), say=say)
    after = answers(result.model, DEMO_PROMPTS[:2])
    validation = next(record for record in reversed(result.records) if record.split == "val")
    for line in _summary(validation, before, after):
        say(line)
    say("")
    say(f"{(time.monotonic() - started) / 60:.1f} minutes. The run is in {output}: metrics.jsonl, config.yaml, model/.")
    say("Try next:")
    say(f"  dpolish dpo --config {output}/config.yaml --output {output}-beta model.dpo.ref_policy_kl_penalty=0.3")
    say("    another β: the reference is not scored again")
    say(f"  dpolish plan --model {folder} --train {train}")
    say("    every number of a run of your own, before it costs anything; then put your files in its place")


def _summary(validation: StepRecord, before: list[str], after: list[str]) -> list[str]:
    """The table and the answers.

    Before training policy and reference are one model: every reward is 0, no pair is won.
    """
    metrics = validation.metrics
    lines = [
        "",
        "held-out pairs            before    after",
        f"  accuracy                 0.000    {metrics['acc']:.3f}",
        f"  reward margin            0.000    {metrics['rewards_margin_mean']:.3f}",
        f"  reward, chosen           0.000   {metrics['rewards_chosen_mean']:+.3f}",
        f"  reward, rejected         0.000   {metrics['rewards_rejected_mean']:+.3f}",
    ]
    for prompt, old, new in zip(DEMO_PROMPTS, before, after, strict=False):
        lines += ["", f"  {prompt}", f"    before: {_one_line(old)}", f"    after:  {_one_line(new)}"]
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.split())
