"""The tutorial's commands, NeMo-Aligner's own file, flags, environment, one error for all faults, and YAML again."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dpolish.config import DpoConfig, compose, find_config, forbidden_attention, require_complete, to_yaml
from dpolish.config.data_prefix import DataFiles, DataSource
from dpolish.config.keys import all_keys
from dpolish.config.nemo_keys import DPO
from dpolish.config.schema import (
    DpoDataConfig,
    DpoModelConfig,
    DpoTrainerConfig,
    ExpManagerConfig,
    OptimConfig,
    SchedConfig,
    WandbConfig,
)
from dpolish.errors import ConfigError
from tests.config.composing import NEMO_YAML, composed, config, faults

TERMINAL = [
    "trainer.num_nodes=1",
    "trainer.devices=1",
    "++model.micro_batch_size=1",
    "++model.global_batch_size=512",
    "pretrained_checkpoint.restore_from_path=/path/to/model",
    "model.data.data_prefix={train: [/p/t.jsonl], validation: [/p/v.jsonl], test: [/p/v.jsonl]}",
    "exp_manager.create_wandb_logger=false",
    "exp_manager.wandb_logger_kwargs.project=dpo_training",
    "exp_manager.wandb_logger_kwargs.name=dpo_training",
    "exp_manager.explicit_log_dir=/results",
    "++trainer.dpo.max_epochs=1",
    "++model.dpo.ref_policy_kl_penalty=0.1",
]


def test_the_terminal_command_of_the_tutorial() -> None:
    result = composed(*TERMINAL)
    model = result.config.model
    assert (model.micro_batch_size, model.global_batch_size, model.dpo.ref_policy_kl_penalty) == (1, 512, 0.1)
    assert model.data.data_prefix == DataFiles(
        train=(DataSource("/p/t.jsonl"),),
        validation=(("validation", (DataSource("/p/v.jsonl"),)),),
        test=(DataSource("/p/v.jsonl"),),
    )
    assert result.config.exp_manager.explicit_log_dir == "/results"
    assert result.config.exp_manager.wandb_logger_kwargs == WandbConfig(project="dpo_training", name="dpo_training")
    assert result.ignored == result.without_effect == ()
    require_complete(result.config)


def test_the_slurm_command_of_the_tutorial_with_its_unset_name() -> None:
    nodes = ["trainer.num_nodes=4", "trainer.devices=8"]
    wandb = ["exp_manager.wandb_logger_kwargs.name=", "exp_manager.wandb_logger_kwargs.project=P"]
    quoted = "pretrained_checkpoint.restore_from_path='/path/to/mcore_gpt.nemo'"
    prefix = "++model.data.data_prefix={train: [/p/t.jsonl], validation: [/p/v.jsonl], test: [/p/v.jsonl]}"
    result = config(*nodes, quoted, prefix, *wandb, "exp_manager.create_wandb_logger=True")
    assert result.exp_manager.wandb_logger_kwargs == WandbConfig(project="P", name="")
    assert result.exp_manager.create_wandb_logger
    assert result.pretrained_checkpoint.restore_from_path == "/path/to/mcore_gpt.nemo"
    assert (result.trainer.num_nodes, result.trainer.devices) == (4, 8)


@pytest.mark.parametrize("path", ["/m/gpt.nemo", "/m/gpt.nemo/"])
def test_gpt_dpo_yaml_as_it_is_takes_a_nemo_archive(path: str) -> None:
    result = composed(f"pretrained_checkpoint.restore_from_path={path}", file=NEMO_YAML)
    trainer, model = result.config.trainer, result.config.pretrained_checkpoint
    assert (trainer.num_nodes, trainer.devices, trainer.accelerator) == (8, 8, "gpu")
    assert model.restore_from_path == result.config.restore_from_path == path
    assert result.config.exp_manager.checkpoint_callback_params.save_nemo_on_train_end
    assert result.origin["trainer.devices"] == result.origin["trainer.num_nodes"] == "given"


def test_gpt_dpo_yaml_holds_our_defaults() -> None:
    """All but the machine, and the archive at the end."""
    result = composed(file=NEMO_YAML)
    ours = config()
    checkpoints = replace(ours.exp_manager.checkpoint_callback_params, save_nemo_on_train_end=True)
    assert result.config == replace(
        ours,
        trainer=replace(ours.trainer, num_nodes=8, devices=8, accelerator="gpu", precision="bf16"),
        exp_manager=replace(ours.exp_manager, explicit_log_dir="/results", checkpoint_callback_params=checkpoints),
    )
    pattern = result.config.exp_manager.checkpoint_callback_params.filename
    assert pattern == "megatron_gpt--{${.monitor}:.3f}-{step}-{consumed_samples}-{epoch}"


def test_gpt_dpo_yaml_tells_what_it_says_in_vain() -> None:
    result = composed(file=NEMO_YAML)
    named = {line.partition(": ")[0] for line in result.ignored}
    assert {"defaults", "trainer.logger", "trainer.max_steps", "model.mcore_gpt", "model.optim.bucket_cap_mb"} <= named
    assert named <= set(DPO.ignored)
    assert all(len(line.partition(": ")[2]) > 10 for line in (*result.ignored, *result.without_effect))
    assert result.without_effect == ()  # its values are the defaults
    told = composed("trainer.dpo.save_interval=50", "exp_manager.resume_if_exists=false").without_effect
    idle = {line.partition(": ")[0] for line in told}
    assert idle == {"trainer.dpo.save_interval", "exp_manager.resume_if_exists"}


def test_defaults_that_differ_from_nemo() -> None:
    ours = config()
    assert (ours.trainer.num_nodes, ours.trainer.devices, ours.trainer.accelerator) == (1, 1, "auto")
    assert (ours.trainer.precision, ours.exp_manager.explicit_log_dir) == (None, None)
    assert not ours.exp_manager.checkpoint_callback_params.save_nemo_on_train_end
    assert ours == replace(DpoConfig(), trainer=DpoTrainerConfig(deterministic=False))


def test_all_faults_are_reported_together_names_first(yaml_file: Callable[[str], Path]) -> None:
    path = yaml_file("model:\n  optim:\n    lr: abc\n  micro_batch_size: 0\n  sed: 1\n")
    found = faults("trainer.devices=0", "++trainer.dvices=1", "model.dpo.preference_loss=dbo", "x=y=z", file=path)
    kinds = ["model.sed", "trainer.dvices", "'dbo'", "x=y=z", "lr: expected", "devices: must", "micro_batch_size: must"]
    assert len(found) == len(kinds)
    assert all(kind in fault for kind, fault in zip(kinds, found, strict=True))


def test_one_override_can_hold_several_faults() -> None:
    assert len(faults("model.optim={lr: x, weight_decay: y, sched: {min_lr: -1, nmae: z}}")) == 4
    assert len(faults("model.optim={lr: -1, weight_decay: -1}")) == 2


def test_the_four_flags() -> None:
    result = compose(model="m", train=["a", "b"], validation=["c"], output="o", environ={})
    assert result.config.pretrained_checkpoint.restore_from_path == "m"
    assert result.config.model.data.data_prefix.plain() == {"train": ["a", "b"], "validation": ["c"]}
    assert result.config.exp_manager.explicit_log_dir == "o"
    assert result.origin["model.data.data_prefix"] == result.origin["exp_manager.explicit_log_dir"] == "given"


@pytest.mark.parametrize(
    "override",
    [
        "pretrained_checkpoint.restore_from_path=x",
        "model.data.data_prefix={train: [x]}",
        "++model.data.data_prefix.train=[x]",
        "model.data.data_prefix=x",
    ],
)
def test_a_flag_that_an_override_contradicts(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(None, [override], model="m", train=["a"], environ={})
    assert f"contradicts command line: `{override}`" in str(caught.value)
    assert "--model m" in str(caught.value) or "--train a" in str(caught.value)


def test_a_flag_that_an_override_repeats_or_completes(yaml_file: Callable[[str], Path]) -> None:
    same = ["pretrained_checkpoint.restore_from_path=m", "model.data.data_prefix={train: [a], validation: [v]}"]
    path = yaml_file("pretrained_checkpoint: {restore_from_path: other}")
    result = compose(path, same, model="m", train=["a"], environ={}).config
    assert result.model.data.data_prefix.plain() == {"train": ["a"], "validation": ["v"]}
    assert compose(path, model="m", environ={}).config.pretrained_checkpoint.restore_from_path == "m"


def test_what_a_run_needs_is_named_with_its_key_and_its_flag() -> None:
    with pytest.raises(ConfigError, match=r"(?s)restore_from_path is missing.*--model.*train is missing.*--train"):
        require_complete(config("pretrained_checkpoint.restore_from_path=???", "model.data.data_prefix={train: []}"))
    require_complete(compose(model="m", train=["a"], environ={}).config)


def test_nemos_variables_of_the_environment() -> None:
    reproducible = {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
    result = compose(environ=reproducible)
    assert result.config.trainer.deterministic is True
    assert result.origin["trainer.deterministic"] == "environment"
    assert compose(None, ["trainer.deterministic=false"], environ=reproducible).config.trainer.deterministic is False
    assert compose(environ={"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "1"}).config.trainer.deterministic is False

    assert forbidden_attention({"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "1"}) == {"segments"}
    no_flex = compose(environ={"NVTE_FUSED_ATTN": "0"})
    assert no_flex.config.model.attention_backend == "auto"
    assert no_flex.forbidden_attention == {"flex"}
    neither = compose(environ={"NVTE_FUSED_ATTN": "0", "NVTE_FLASH_ATTN": "0"})
    assert neither.config.model.attention_backend == "dense"
    assert neither.origin["model.attention_backend"] == "environment"
    with pytest.raises(ConfigError, match=r"attention_backend: flex contradicts NVTE_FUSED_ATTN=0"):
        compose(None, ["model.attention_backend=flex"], environ={"NVTE_FUSED_ATTN": "0"})


def test_hydras_three_flags(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    mine = tmp_path / "conf" / "mine.yaml"
    mine.write_text("model: {seed: 3}")
    assert find_config("conf", "mine", None, tmp_path) == mine
    assert find_config(None, "mine.yaml", str(tmp_path / "conf"), tmp_path) == mine
    assert find_config(None, "gpt_dpo", None, tmp_path) is find_config(None, None, None, tmp_path) is None
    for path, name, folder in (("conf", None, None), (None, "mine", None), (None, "other", str(tmp_path))):
        with pytest.raises(ConfigError, match="there is no such file"):
            find_config(path, name, folder, tmp_path)


texts = st.text(st.characters(exclude_categories=["Cs"]))
names = texts.filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    name=names,
    path=names,
    wandb=texts,
    tags=st.lists(texts),
    lr=st.floats(1e-12, 1),
    val=st.floats(0.001, 1) | st.integers(1),
)
def test_a_configuration_survives_its_own_yaml(
    name: str, path: str, wandb: str, tags: list[str], lr: float, val: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = DpoConfig(
        trainer=DpoTrainerConfig(deterministic=True, dpo=replace(DpoTrainerConfig().dpo, val_check_interval=val)),
        exp_manager=ExpManagerConfig(name=name, wandb_logger_kwargs=WandbConfig(name=wandb, tags=tuple(tags))),
        model=DpoModelConfig(
            optim=OptimConfig(lr=lr, sched=SchedConfig(warmup_ratio=0.1, warmup_steps=None)),
            data=DpoDataConfig(data_prefix=DataFiles(train=(DataSource(path, lr), DataSource(path, 1.0)))),
        ),
    )
    file = tmp_path_factory.mktemp("yaml") / "config.yaml"
    file.write_text(to_yaml(before), encoding="utf-8")
    assert compose(file, environ={}).config == before


@pytest.mark.parametrize(
    "overrides", [(), TERMINAL, ("model.data.data_prefix=[a, b]", "trainer.dpo.limit_val_batches=1")]
)
def test_what_was_composed_composes_again(overrides: Sequence[str], yaml_file: Callable[[str], Path]) -> None:
    before = config(*overrides)
    assert composed(file=yaml_file(to_yaml(before))).config == before


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    reward=st.floats(allow_nan=False, allow_infinity=False),
    packing=st.booleans(),
    name=st.text(st.characters(codec="ascii", exclude_characters="\\'$", exclude_categories=["C"]), min_size=1).filter(
        str.strip
    ),
)
def test_values_survive_the_grammar(seed: int, reward: float, packing: bool, name: str) -> None:
    result = config(
        f"model.seed={seed}",
        f"model.data.default_chosen_reward={reward!r}",
        f"model.data.packing={packing}",
        f"exp_manager.name='{name}'",
    )
    assert (result.model.seed, result.model.data.default_chosen_reward) == (seed, reward)
    assert (result.model.data.packing, result.exp_manager.name) == (packing, name)


def test_origin_names_every_key() -> None:
    origin = composed("model.seed=1").origin
    assert origin.keys() == all_keys().keys()
    assert [key for key, where in origin.items() if where != "default"] == ["model.seed"]


def test_keys_that_gpt_dpo_yaml_lacks_can_be_added() -> None:
    defaults = {key: all_keys()[key].default for key in DPO.unlisted}
    plain = {key: value for key, value in defaults.items() if isinstance(value, bool | int | float)}
    assert len(plain) > 10
    assert config(*(f"+{key}={value}" for key, value in plain.items())) == config()


def test_composing_needs_no_torch() -> None:
    code = "import sys, dpolish.config as c; c.compose(); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
