"""Sections refuse bad values also when they are built by hand, and every field explains itself."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dpolish.config import compose
from dpolish.config.checks import SectionError
from dpolish.config.keys import all_keys, all_sections, help_texts
from dpolish.config.schema import (
    PREFERENCE_LOSSES,
    ROOTS,
    SCHEDULES,
    ChatPromptTokens,
    CheckpointConfig,
    DpoConfig,
    DpoDataConfig,
    DpoTrainerConfig,
    OptimConfig,
    RunConfig,
    SchedConfig,
    SftConfig,
    SftDataConfig,
)
from dpolish.config.schema.data import NEMO_TOKENS
from tests.config.composing import config, sft_config


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        (lambda: OptimConfig(lr=0, weight_decay=-1, betas=(0.9, 1.0)), {"lr", "weight_decay", "betas"}),
        (lambda: SchedConfig(warmup_ratio=0.1), {"warmup_steps"}),
        (lambda: SchedConfig(warmup_steps=-1, min_lr=-1.0, d_model=0), {"warmup_steps", "min_lr", "d_model"}),
        (
            lambda: DpoTrainerConfig(devices=(0, 0), num_nodes=0, hang_timeout=1.0),
            {"devices", "num_nodes", "hang_timeout"},
        ),
        (lambda: DpoDataConfig(tokens_per_micro_batch=0), {"tokens_per_micro_batch"}),
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


@pytest.mark.parametrize("devices", [1, 8, -1, "auto", (3,), (2, 0)])
def test_the_ways_to_say_which_devices(devices: int | tuple[int, ...]) -> None:
    assert DpoTrainerConfig(devices=devices).devices == devices


@pytest.mark.parametrize("root", ROOTS.values())
def test_every_field_and_every_section_explains_itself(root: type[RunConfig]) -> None:
    texts = help_texts(root)
    assert texts.keys() == all_keys(root).keys()
    assert [key for key, text in texts.items() if not text.endswith(".")] == []
    assert texts["model.optim.lr"] == "Highest learning rate."
    assert texts["model.seed"].startswith("Seed of")  # from what both trees share
    assert all(section.__doc__ and "(" not in section.__doc__[:15] for section in all_sections(root).values())


@pytest.mark.parametrize("root", ROOTS.values())
def test_defaults_are_valid_and_frozen(root: type[RunConfig]) -> None:
    config = root()
    assert hash(config) == hash(root())
    with pytest.raises(AttributeError):
        setattr(config.model, "seed", 1)  # noqa: B010 (a type checker refuses the plain form)


@pytest.mark.parametrize("root", ROOTS.values())
def test_a_default_is_what_composing_nothing_gives(root: type[RunConfig]) -> None:
    trainer = replace(root().trainer, deterministic=False)  # what a null stands for
    assert compose(root=root, environ={}).config == replace(root(), trainer=trainer)


def test_what_both_trees_are_asked_for() -> None:
    dpo = config("trainer.dpo.max_steps=3", "pretrained_checkpoint.restore_from_path=/m", "model.data.seq_length=64")
    sft = sft_config("trainer.sft.max_steps=3", "model.restore_from_path=/m", "model.data.train_ds.max_seq_length=64")
    for one in (dpo, sft):
        assert (one.loop.max_steps, one.restore_from_path, one.seq_length) == (3, "/m", 64)
    assert (dpo.verb, sft.verb) == ("dpo", "sft")
    assert list(ROOTS.items()) == [("dpo", DpoConfig), ("sft", SftConfig)]
    assert {ROOTS[one.verb] for one in (dpo, sft)} == {type(dpo), type(sft)}


def test_names_are_known_without_torch() -> None:
    assert PREFERENCE_LOSSES == ("dpo", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl")
    assert SCHEDULES[0] == SchedConfig().name == "CosineAnnealing"


@pytest.mark.parametrize(("root", "number"), [(DpoConfig, 4), (SftConfig, 14)])
def test_a_key_that_follows_another_follows_one_that_exists(root: type[RunConfig], number: int) -> None:
    followed = {key.name: key.followed for key in all_keys(root).values() if key.followed}
    assert len(followed) == number
    assert set(followed.values()) <= all_keys(root).keys()


def test_the_keys_that_are_followed() -> None:
    dpo, sft = all_keys(DpoConfig), all_keys(SftConfig)
    assert dpo["model.dpo.sft_average_log_probs"].followed == "model.dpo.preference_average_log_probs"
    assert sft["exp_manager.name"].followed == "name"
    assert sft["model.global_batch_size"].followed == "model.data.train_ds.global_batch_size"
    assert sft["trainer.sft.save_interval"].followed == "trainer.sft.val_check_interval"
    assert dpo["exp_manager.name"].followed is dpo["trainer.dpo.save_interval"].followed is None


@pytest.mark.parametrize(
    ("template", "tokens", "words"),
    [
        ("", None, "is empty"),
        ("chatml", None, "unknown template 'chatml'. Known: extra_id, nemo, the path of a .jinja file"),
        ("extra", None, "Did you mean 'extra_id'?"),
        ("extra_id", "<x>", "extra_id has no use for chat_prompt_tokens"),
        ("my.jinja", "", "my.jinja has no use for chat_prompt_tokens"),
        (None, None, None),
        ("extra_id", None, None),
        ("nemo", "<x>", None),
        (None, "<x>", None),
        ("/a/b.jinja", None, None),
    ],
)
@pytest.mark.parametrize("data", [DpoDataConfig, SftDataConfig])
def test_the_ways_to_name_a_chat_template(
    data: type[DpoDataConfig | SftDataConfig], template: str | None, tokens: str | None, words: str | None
) -> None:
    given = ChatPromptTokens(turn_start=tokens)
    if words is None:
        assert data(chat_template=template, chat_prompt_tokens=given).chat_template == template
        return
    with pytest.raises(SectionError) as caught:
        data(chat_template=template, chat_prompt_tokens=given)
    assert words in caught.value.faults["chat_template"]


def test_one_token_that_is_given_stands_among_nemos_own() -> None:
    assert DpoDataConfig().prompt_tokens is None
    data = SftDataConfig(chat_prompt_tokens=ChatPromptTokens(turn_start="<t>", label_start=""))
    assert data.prompt_tokens == ("\x00", "<t>", "", "\n", "\n")
    assert ChatPromptTokens(end_of_name="\n").chosen == NEMO_TOKENS
    with pytest.raises(SectionError, match="end_of_turn: is empty"):
        ChatPromptTokens(end_of_turn="")
