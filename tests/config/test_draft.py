"""Settings are laid over the defaults: what each override does, what it cannot do, and typos in any key."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dpolish.config.keys import all_keys
from dpolish.config.schema import ROOTS, RunConfig
from dpolish.config.trees import tree_of
from tests.config.composing import composed, config, faults, value_of


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model.seed=1_000", "model.seed", 1000),
        ("++model.seed=7", "model.seed", 7),
        ("+model.encoder_seq_length=2048", "model.encoder_seq_length", 2048),
        ("+model.data.append_eod=True", "model.data.append_eod", True),
        ("trainer.dpo.max_steps=-1", "trainer.dpo.max_steps", -1),
        ("model.optim.lr=9e-6", "model.optim.lr", 9e-6),
        ("model.optim.lr=1.e-6", "model.optim.lr", 1e-6),
        ("model.optim.betas=[0.9,0.95]", "model.optim.betas", [0.9, 0.95]),
        ("model.data.packing=false", "model.data.packing", False),
        ("exp_manager.name=yes", "exp_manager.name", "yes"),
        ("exp_manager.name=None", "exp_manager.name", "None"),
        ("exp_manager.name=true", "exp_manager.name", "true"),
        ("exp_manager.name=1e3", "exp_manager.name", "1e3"),
        ("exp_manager.name='a=b, c'", "exp_manager.name", "a=b, c"),
        ("exp_manager.exp_dir=${exp_manager.name}/x", "exp_manager.exp_dir", "megatron_gpt/x"),
        ("exp_manager.name='\\${x}'", "exp_manager.name", "${x}"),
        ("exp_manager.wandb_logger_kwargs.name=", "exp_manager.wandb_logger_kwargs.name", ""),
        ("exp_manager.wandb_logger_kwargs={name: n}", "exp_manager.wandb_logger_kwargs.name", "n"),
        ("exp_manager.wandb_logger_kwargs.tags=[a,'1']", "exp_manager.wandb_logger_kwargs.tags", ["a", "1"]),
        ("exp_manager.wandb_logger_kwargs.resume=must", "exp_manager.wandb_logger_kwargs.resume", "must"),
        ("~model.optim.sched.constant_steps", "model.optim.sched.constant_steps", None),
        ("~model.optim.sched.warmup_steps=10", "model.optim.sched.warmup_steps", None),
        ("model.optim.sched={warmup_steps: 3}", "model.optim.sched.warmup_steps", 3),
        ("model.optim.sched.min_lr=${model.optim.lr}", "model.optim.sched.min_lr", 9e-6),
        ("model.optim.lr=${.sched.min_lr}", "model.optim.lr", 9e-7),
        ("model.optim.sched.min_lr=${..lr}", "model.optim.sched.min_lr", 9e-6),
        ("model.global_batch_size='${multiply:4,${model.micro_batch_size}}'", "model.global_batch_size", 4),
        ("model.global_batch_size=${int_div:7,2}", "model.global_batch_size", 3),
        ("trainer.precision=32", "trainer.precision", "32"),
        ("precision=bf16", "trainer.precision", "bf16"),
        ("++dpo.default_chosen_reward=2", "model.data.default_chosen_reward", 2.0),
        ("model.dpo.default_rejected_reward=-1", "model.data.default_rejected_reward", -1.0),
        ("model.prefix_sharing=false", "model.prefix_sharing", "off"),
        ("model.prefix_sharing=on", "model.prefix_sharing", "on"),
        ("model.dpo.reference_cache=false", "model.dpo.reference_cache", "off"),
        ("model.dpo.reference_cache=/a/b", "model.dpo.reference_cache", "/a/b"),
        ("trainer.devices=[0]", "trainer.devices", [0]),
        ("trainer.devices=auto", "trainer.devices", "auto"),
        ("trainer.devices=-1", "trainer.devices", -1),
        ("model.data.data_prefix=a.jsonl", "model.data.data_prefix", ["a.jsonl"]),
        (
            "model.data.data_prefix={train: [0.3,/a,0.7,/b]}",
            "model.data.data_prefix",
            {"train": [0.3, "/a", 0.7, "/b"]},
        ),
        ("model.data.pairs=all", "model.data.pairs", "all"),
        ("model.data.chat_template=nemo", "model.data.chat_template", "nemo"),
        ("model.data.chat_template=/a/b.jinja", "model.data.chat_template", "/a/b.jinja"),
        (
            "+model.data.chat_prompt_tokens.turn_start='<extra_id_1>'",
            "model.data.chat_prompt_tokens.turn_start",
            "<extra_id_1>",
        ),
        ("++model.data.data_prefix.train=[x]", "model.data.data_prefix", {"train": ["x"]}),
    ],
)
def test_an_override_sets(override: str, key: str, value: object) -> None:
    result = composed(override)
    found = value_of(result, key)
    assert (found, type(found)) == (value, type(value))
    assert result.origin[key] == "given"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("model.seed@x=3", "expected key=value"),
        ("exp_manager.name=/a/b=c", "an `=` inside a value needs quotes"),
        ("exp_manager.name=[a", "cannot be read"),
        ("exp_manager.name=it's", "put it in quotes"),
        ("model.seed=1,2", "only with --multirun"),
        ("model.seed=choice(1,2)", "only with --multirun"),
        ("model.seed=range(1,3)", "only with --multirun"),
        ("+model.seed=1", "exists already"),
        ("+model.data.packing=true", "exists already"),
        ("~model.mcore_gpt", "not given"),
        ("~model.optim.sched.warmup_steps=11", "is 10, so it is not deleted"),
        ("~model.seed", "expected a whole number, got None"),
        ("model.optim=3", "a section, not a value; it has name, lr,"),
        ("model.seed=${model.sed}", "'model.sed' not found"),
        ("model.seed=${nothing:1}", "nothing"),
        ("exp_manager.name='${x'", "exp_manager.name"),
        ("model.optim.lr=???", "missing"),
        ("model.data.pairs=best", "unknown value 'best'"),
        ("model.data.chat_template=", "is empty"),
        ("exp_manager.checkpoint_callback_params.filename='{${x'", "checkpoint_callback_params.filename"),
        ("model.restore_from_path=/m", "DPO names its model with pretrained_checkpoint.restore_from_path"),
        ("model.data.train_ds.file_path=a", "DPO names its files with model.data.data_prefix"),
        ("model.dpo.average_log_probs=true", "preference_average_log_probs"),
        ("++model.dpo.average_log_probs=false", "sft_average_log_probs"),
        ("model.data.data_prefix={trian: [a]}", "Did you mean 'model.data.data_prefix.train'?"),
        ("lr=1e-5", "Did you mean 'model.optim.lr'?"),
        ("modle.optim.lr=1", "Did you mean 'model.optim.lr'?"),
    ],
)
def test_an_override_is_refused(override: str, words: str) -> None:
    (fault,) = faults(override)
    assert fault.startswith(f"command line: `{override}`: ")
    assert words in fault


def test_later_settings_win_and_mappings_merge() -> None:
    files = config("model.data.data_prefix={train: [a], validation: [b]}", "++model.data.data_prefix={train: [c]}")
    assert files.model.data.data_prefix.plain() == {"train": ["c"], "validation": ["b"]}
    whole = config("model.data.data_prefix={train: [a]}", "model.data.data_prefix=[b]", "model.seed=1", "model.seed=2")
    assert (whole.model.data.data_prefix.plain(), whole.model.seed) == (["b"], 2)
    assert faults("+model.encoder_seq_length=5", "+model.encoder_seq_length=6") != []


def test_a_key_that_follows_another_says_so_in_every_place() -> None:
    result = config(
        "model.micro_batch_size=4", "model.dpo.preference_average_log_probs=true", "++model.encoder_seq_length=99"
    )
    assert result.model.dpo.log_prob_forward_micro_batch_size == 4
    assert result.model.dpo.sft_average_log_probs
    assert result.model.data.seq_length == 99
    assert config("model.dpo.sft_average_log_probs=true").model.dpo.preference_average_log_probs is False
    (fault,) = faults("model.micro_batch_size=0")  # not a second time for its follower
    assert "model.micro_batch_size: must be 1 or more" in fault


def test_a_ratio_takes_the_place_of_steps() -> None:
    sched = config("+model.optim.sched.warmup_ratio=0.1", "+model.optim.sched.constant_ratio=0.2").model.optim.sched
    assert (sched.warmup_steps, sched.warmup_ratio, sched.constant_steps, sched.constant_ratio) == (
        None,
        0.1,
        None,
        0.2,
    )
    (fault,) = faults("model.optim.sched.warmup_steps=5", "model.optim.sched.warmup_ratio=0.1")
    assert "both given" in fault


def known_keys(root: type[RunConfig]) -> list[str]:
    nemo = tree_of(root).nemo
    return sorted({*all_keys(root), *nemo.aliases, *(key for key in nemo.ignored if not key.endswith(".*"))})


def typos(key: str) -> list[str]:
    """The key with a letter of its last part lost, doubled, and changed."""
    stem, _, name = f".{key}".rpartition(".")
    middle = len(name) // 2
    lost, doubled = name[:middle] + name[middle + 1 :], name[:middle] + name[middle] + name[middle:]
    changed = name[:middle] + ("x" if name[middle] != "x" else "y") + name[middle + 1 :]
    return [f"{stem}.{typo}"[1:] for typo in (lost, doubled, changed) if typo]


HINTS: dict[type[RunConfig], dict[str, str]] = {
    root: {typo: key for key in known_keys(root) for typo in typos(key) if typo not in known_keys(root)}
    for root in ROOTS.values()
}
"""Every typo, and the key that it means."""


def batches(size: int) -> list[tuple[type[RunConfig], list[str]]]:
    return [
        (root, list(wrong)[start : start + size])
        for root, wrong in HINTS.items()
        for start in range(0, len(wrong), size)
    ]


@pytest.mark.parametrize(("form", "step"), [("{}=1", 1), ("+{}=1", 3), ("++{}=1", 3)])
def test_a_typo_in_any_key_is_refused_with_a_hint(form: str, step: int) -> None:
    for root, batch in batches(20 * step):  # as many faults as one error shows
        _check_typos(batch[::step], form, root)


def _check_typos(batch: Sequence[str], form: str, root: type[RunConfig]) -> None:
    found = faults(*(form.format(typo) for typo in batch), root=root)
    for typo, fault in zip(batch, found, strict=True):
        assert fault.startswith(f"command line: `{form.format(typo)}`: unknown key {typo!r}.")
        assert f"Did you mean {HINTS[root][typo]!r}?" in fault


@pytest.mark.parametrize(("root", "batch"), batches(20))
def test_a_typo_in_a_file_is_refused_with_a_hint(
    yaml_file: Callable[[str], Path], root: type[RunConfig], batch: list[str]
) -> None:
    path = yaml_file(_as_yaml(batch))
    found = "\n".join(faults(file=path, root=root))
    assert all(f"unknown key {typo!r}. Did you mean {HINTS[root][typo]!r}?" in found for typo in batch)
    assert found.count(f"{path}:") == len(batch)


def test_every_key_of_both_trees_is_mistyped_above() -> None:
    for root, wrong in HINTS.items():
        assert set(wrong.values()) == set(known_keys(root))
        assert len(wrong) > 300


def _as_yaml(keys: Sequence[str]) -> str:
    tree = OmegaConf.create()
    for key in keys:
        OmegaConf.update(tree, key, 1, force_add=True)
    return OmegaConf.to_yaml(tree)
