"""Sections refuse bad values also when they are built by hand, and every field explains itself."""

from collections.abc import Callable

import pytest

from dpolish.config.checks import SectionError
from dpolish.config.keys import all_keys, all_sections, help_texts
from dpolish.config.schema import (
    PREFERENCE_LOSSES,
    SCHEDULES,
    CheckpointConfig,
    DataConfig,
    DpoConfig,
    OptimConfig,
    SchedConfig,
    TrainerConfig,
)


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        (lambda: OptimConfig(lr=0, weight_decay=-1, betas=(0.9, 1.0)), {"lr", "weight_decay", "betas"}),
        (lambda: SchedConfig(warmup_ratio=0.1), {"warmup_steps"}),
        (lambda: SchedConfig(warmup_steps=-1, min_lr=-1.0, d_model=0), {"warmup_steps", "min_lr", "d_model"}),
        (lambda: TrainerConfig(devices=(0, 1), num_nodes=2), {"devices", "num_nodes"}),
        (lambda: DataConfig(tokens_per_micro_batch=0), {"tokens_per_micro_batch"}),
        (lambda: CheckpointConfig(save_top_k=-2, monitor="val_lose"), {"save_top_k", "monitor"}),
    ],
)
def test_a_section_names_all_fields_at_fault(build: Callable[[], object], fields: set[str]) -> None:
    with pytest.raises(SectionError) as caught:
        build()
    assert set(caught.value.faults) == fields
    assert all(name in str(caught.value) for name in fields)


@pytest.mark.parametrize("monitor", ["val_loss", "val/acc", "validation_loss", "val_rewards_chosen_mean"])
def test_the_metrics_that_can_be_monitored(monitor: str) -> None:
    assert CheckpointConfig(monitor=monitor).monitor == monitor


@pytest.mark.parametrize("devices", [1, -1, "auto", (3,)])
def test_the_ways_to_say_one_device(devices: int | tuple[int, ...]) -> None:
    assert TrainerConfig(devices=devices).devices == devices


def test_every_field_and_every_section_explains_itself() -> None:
    texts = help_texts()
    assert texts.keys() == all_keys().keys()
    assert [key for key, text in texts.items() if not text.endswith(".")] == []
    assert texts["model.optim.lr"] == "Highest learning rate."
    assert all(section.__doc__ and "(" not in section.__doc__[:5] for section in all_sections().values())


def test_defaults_are_valid_and_frozen() -> None:
    config = DpoConfig()
    assert hash(config) == hash(DpoConfig())
    with pytest.raises(AttributeError):
        setattr(config.model, "seed", 1)  # noqa: B010 (a type checker refuses the plain form)


def test_names_are_known_without_torch() -> None:
    assert PREFERENCE_LOSSES == ("dpo", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl")
    assert SCHEDULES[0] == SchedConfig().name == "CosineAnnealing"


def test_a_key_that_follows_another_follows_one_that_exists() -> None:
    followed = {key.name: key.followed for key in all_keys().values() if key.followed}
    assert followed["model.dpo.sft_average_log_probs"] == "model.dpo.preference_average_log_probs"
    assert len(followed) == 4
    assert set(followed.values()) <= all_keys().keys()
