"""A configuration comes from a file, overrides and flags; whatever cannot be used is refused in one error."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from omegaconf import OmegaConf

from dpolish.config import Composed, DpoConfig, compose, find_config, forbidden_attention, require_complete, to_yaml
from dpolish.config.data_prefix import DataFiles, DataSource
from dpolish.config.keys import all_keys
from dpolish.config.nemo_keys import ALIASES, IGNORED, UNLISTED
from dpolish.config.schema import (
    DataConfig,
    ExpManagerConfig,
    ModelConfig,
    OptimConfig,
    SchedConfig,
    TrainerConfig,
    WandbConfig,
)
from dpolish.errors import ConfigError

NEMO_YAML = Path(__file__).parent / "gpt_dpo.yaml"
ONE_DEVICE = ("trainer.num_nodes=1", "trainer.devices=1")
NO_NEMO_AT_END = "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=false"


def composed(*overrides: str, file: Path | None = None) -> Composed:
    return compose(file, overrides, environ={})


def config(*overrides: str) -> DpoConfig:
    return composed(*overrides).config


def faults(*overrides: str, file: Path | None = None) -> list[str]:
    """The faults reported, without the line that counts them."""
    with pytest.raises(ConfigError) as caught:
        composed(*overrides, file=file)
    lines = str(caught.value).splitlines()
    return lines[1:] if lines[0].endswith(" problems:") else lines


@pytest.fixture
def yaml_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# --- the commands of the tutorial, and NeMo-Aligner's own file --------------------------------------------------------

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
    wandb = ["exp_manager.wandb_logger_kwargs.name=", "exp_manager.wandb_logger_kwargs.project=P"]
    quoted = "pretrained_checkpoint.restore_from_path='/path/to/model'"
    prefix = "++model.data.data_prefix={train: [/p/t.jsonl], validation: [/p/v.jsonl], test: [/p/v.jsonl]}"
    result = config(*ONE_DEVICE, quoted, prefix, *wandb, "exp_manager.create_wandb_logger=True")
    assert result.exp_manager.wandb_logger_kwargs == WandbConfig(project="P", name="")
    assert result.exp_manager.create_wandb_logger
    assert result.pretrained_checkpoint.restore_from_path == "/path/to/model"


def test_gpt_dpo_yaml_as_it_is_needs_one_device_and_no_nemo_archive() -> None:
    assert [fault.partition(": ")[0] for fault in faults(file=NEMO_YAML)] == [
        f"{NEMO_YAML}:{line}" for line in (5, 6, 39)
    ]


def test_gpt_dpo_yaml_holds_our_defaults() -> None:
    result = composed(*ONE_DEVICE, NO_NEMO_AT_END, file=NEMO_YAML)
    ours = config()
    assert replace(
        result.config,
        trainer=replace(result.config.trainer, accelerator="auto", precision=None),
        exp_manager=replace(result.config.exp_manager, explicit_log_dir=None),
    ) == replace(ours, exp_manager=replace(ours.exp_manager, explicit_log_dir=None))
    assert (result.config.trainer.accelerator, result.config.trainer.precision) == ("gpu", "bf16")
    pattern = result.config.exp_manager.checkpoint_callback_params.filename
    assert pattern == "megatron_gpt--{${.monitor}:.3f}-{step}-{consumed_samples}-{epoch}"


def test_gpt_dpo_yaml_tells_what_it_says_in_vain() -> None:
    result = composed(*ONE_DEVICE, NO_NEMO_AT_END, file=NEMO_YAML)
    named = {line.partition(": ")[0] for line in result.ignored}
    assert {"defaults", "trainer.logger", "trainer.max_steps", "model.mcore_gpt", "model.optim.bucket_cap_mb"} <= named
    assert named <= set(IGNORED)
    assert all(len(line.partition(": ")[2]) > 10 for line in (*result.ignored, *result.without_effect))
    idle = {line.partition(": ")[0] for line in result.without_effect}
    assert {"trainer.dpo.save_interval", "exp_manager.resume_if_exists"} <= idle
    assert "model.optim.lr" not in idle | named


def test_defaults_that_differ_from_nemo() -> None:
    ours = config()
    assert (ours.trainer.num_nodes, ours.trainer.devices, ours.trainer.accelerator) == (1, 1, "auto")
    assert (ours.trainer.precision, ours.exp_manager.explicit_log_dir) == (None, None)
    assert not ours.exp_manager.checkpoint_callback_params.save_nemo_on_train_end
    assert ours == replace(DpoConfig(), trainer=TrainerConfig(deterministic=False))


# --- the grammar ------------------------------------------------------------------------------------------------------


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
        ("model.global_batch_size=${multiply:4,${model.micro_batch_size}}", "model.global_batch_size", 4),
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
        ("++model.data.data_prefix.train=[x]", "model.data.data_prefix", {"train": ["x"]}),
    ],
)
def test_an_override_sets(override: str, key: str, value: object) -> None:
    result = composed(override)
    found: object = result.resolved
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
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


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_omegaconf_reads_it(yaml_file: Callable[[str], Path]) -> None:
    text = (
        "model: {optim: {lr: 9e-6}, prefix_sharing: off, data: {format: None}, dpo: {reference_cache: off}}\n"
        "exp_manager: {name: 1e3, explicit_log_dir: ${oc.env:HOME}}\n"
        "hydra: {run: {dir: 'outputs/${now:%Y}'}}\n"
    )
    result = composed(file=yaml_file(text)).config
    assert isinstance(result.model.optim.lr, float)
    assert (result.model.optim.lr, result.model.prefix_sharing, result.model.data.format) == (9e-6, "off", "None")
    assert (result.model.dpo.reference_cache, result.exp_manager.name) == ("off", "1e3")
    assert result.exp_manager.explicit_log_dir


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("model:\n  seed: 1\n  seed: 2\n", 3, "duplicate key seed"),
        ("model:\n\tseed: 1\n", 2, "cannot start any token"),
        ("model:\n  seed: [1\n", 3, "not valid YAML"),
        ("model:\n  sed: 1\n", 2, "unknown key 'model.sed'. Did you mean 'model.seed'?"),
        ("model: {seed: 1}\nmodle:\n  seed: 1\n", 2, "unknown key 'modle'. Did you mean 'model'?"),
        ("model:\n  seed: x\n", 2, "model.seed: expected a whole number, got 'x'"),
        ("model:\n  optim: 3\n", 2, "a section"),
        ("defaults: [gpt_dpo, _self_, mine]\n", 1, "'mine' is another file"),
        ("base: &b {seed: x}\nmodel:\n  <<: *b\n", 1, "unknown key 'base'"),
        ("model:\n  seed: ???\n", 2, "missing"),
    ],
)
def test_a_fault_in_a_file_names_its_line(yaml_file: Callable[[str], Path], text: str, line: int, words: str) -> None:
    path = yaml_file(text)
    fault = faults(file=path)[0]
    assert fault.startswith(f"{path}:{line}: ")
    assert words in fault


@pytest.mark.parametrize("text", ["- a\n", "just words\n", "a: ${b\n"])
def test_a_file_that_is_no_configuration(yaml_file: Callable[[str], Path], text: str) -> None:
    path = yaml_file(text)
    assert faults(file=path)[0].startswith(f"{path}: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    for name in ("missing.yaml", "latin.yaml", "."):
        assert "cannot be read" in faults(file=tmp_path / name)[0]


def test_an_empty_file_is_the_defaults(yaml_file: Callable[[str], Path]) -> None:
    assert composed(file=yaml_file("# nothing\n")).config == config()


def test_the_command_line_wins_over_the_file(yaml_file: Callable[[str], Path]) -> None:
    path = yaml_file("model:\n  seed: 1\n  micro_batch_size: 2\n")
    result = composed("model.seed=5", file=path)
    assert (result.config.model.seed, result.config.model.micro_batch_size) == (5, 2)
    assert (
        "exists already" in faults("+model.encoder_seq_length=4", file=yaml_file("model: {encoder_seq_length: 3}"))[0]
    )
    assert composed("~model.mcore_gpt", file=yaml_file("model: {mcore_gpt: true}")).ignored == ()


# --- strictness -------------------------------------------------------------------------------------------------------

KNOWN = sorted({*all_keys(), *ALIASES, *(key for key in IGNORED if not key.endswith(".*"))})


def typos(key: str) -> list[str]:
    """The key with a letter of its last part lost, doubled, and changed."""
    stem, _, name = f".{key}".rpartition(".")
    middle = len(name) // 2
    lost, doubled = name[:middle] + name[middle + 1 :], name[:middle] + name[middle] + name[middle:]
    changed = name[:middle] + ("x" if name[middle] != "x" else "y") + name[middle + 1 :]
    return [f"{stem}.{typo}"[1:] for typo in (lost, doubled, changed) if typo]


WRONG = [typo for key in KNOWN for typo in typos(key) if typo not in KNOWN]
HINTS = {typo: key for key in KNOWN for typo in typos(key)}


@pytest.mark.parametrize("form", ["{}=1", "+{}=1", "++{}=1"])
@pytest.mark.parametrize("start", range(0, len(WRONG), 20))
def test_a_typo_in_any_key_is_refused_with_a_hint(start: int, form: str) -> None:
    batch = WRONG[start : start + 20]
    found = faults(*(form.format(typo) for typo in batch))
    for typo, fault in zip(batch, found, strict=True):
        assert fault.startswith(f"command line: `{form.format(typo)}`: unknown key {typo!r}.")
        assert f"Did you mean {HINTS[typo]!r}?" in fault


@pytest.mark.parametrize("start", range(0, len(WRONG), 20))
def test_a_typo_in_a_file_is_refused_with_a_hint(yaml_file: Callable[[str], Path], start: int) -> None:
    batch = WRONG[start : start + 20]
    path = yaml_file(_as_yaml(batch))
    found = "\n".join(faults(file=path))
    assert all(f"unknown key {typo!r}. Did you mean {HINTS[typo]!r}?" in found for typo in batch)
    assert found.count(f"{path}:") == len(batch)


def _as_yaml(keys: Sequence[str]) -> str:
    tree = OmegaConf.create()
    for key in keys:
        OmegaConf.update(tree, key, 1, force_add=True)
    return OmegaConf.to_yaml(tree)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.optim.lr=abc", "expected a number, got 'abc'"),
        ("model.optim.lr='9e-6'", "expected a number, got '9e-6'"),
        ("model.optim.lr=nan", "expected a finite number"),
        ("model.optim.betas=[0.9,inf]", "expected a finite number"),
        ("model.optim.lr=-1", "must be above 0, got -1"),
        ("model.optim.lr=true", "expected a number, got True"),
        ("model.seed=1.0", "expected a whole number, got 1.0"),
        ("model.seed=true", "expected a whole number, got True"),
        ("model.seed=-1", "must be 0 or more"),
        ("model.data.packing=1", "expected true or false, got 1"),
        ("model.data.packing=yes", "expected true or false, got 'yes'"),
        ("model.optim.betas=[0.9]", "expected a list of 2 numbers"),
        ("model.optim.betas=[0.9,1.0]", "must be in [0, 1)"),
        ("exp_manager.name=null", "expected a text, got None"),
        ("exp_manager.name=[a]", "expected a text"),
        ("exp_manager.name=", "is empty"),
        ("exp_manager.explicit_log_dir=", "is empty"),
        ("exp_manager.wandb_logger_kwargs.tags=x", "expected a list of texts or null"),
        ("trainer.dpo.val_check_interval=x", "expected a whole number or a number"),
        ("trainer.dpo.val_check_interval=100.0", "at most 1.0, got 100; a count has no point: 100"),
        ("trainer.dpo.val_check_interval=0", "must be above 0"),
        ("trainer.dpo.limit_train_batches=0.0", "must be above 0"),
        ("trainer.dpo.limit_val_batches=-1", "must be 0 or more"),
        ("trainer.dpo.max_steps=0", "must be 1 or more"),
        ("trainer.dpo.max_epochs=0", "must be 1 or more"),
        ("trainer.accelerator=cuda", "unknown value 'cuda'"),
        ("trainer.precision=16", "float16 needs loss scaling"),
        ("trainer.precision=16-mixed", "float16 needs loss scaling"),
        ("trainer.devices=0", "must be 1 or more"),
        ("trainer.devices=two", "unknown value 'two'"),
        ("model.dpo.preference_loss=dqo", "unknown value 'dqo'. Did you mean 'dpo'? Known: dpo, ipo, rpo_sq"),
        ("model.dpo.ref_policy_kl_penalty=0", "must be above 0"),
        ("model.dpo.preference_loss_weight=0", "nothing is trained"),
        ("model.optim.name=adam_w", "Did you mean 'adamw'?"),
        ("model.optim.sched.name=CosineAnealing", "Did you mean 'CosineAnnealing'?"),
        ("model.optim.sched.warmup_ratio=1.5", "must be in [0, 1]"),
        ("model.data.on_overlong=cut", "unknown value 'cut'"),
        ("model.data.splits_string=980", "expected three shares"),
        ("model.data.splits_string='0,0,0'", "expected three shares"),
        ("model.data.seq_length=1", "must be 2 or more"),
        ("model.data.data_prefix={train: [0.3,a,0.7]}", "weights and paths must alternate"),
        ("model.data.data_prefix={train: [0.3,a,b,c]}", "expected a weight above 0, got 'b'"),
        ("model.data.data_prefix={train: [0.3,a,-1,c]}", "expected a weight above 0"),
        ("model.data.data_prefix={train: ['']}", "a path is empty"),
        ("model.data.data_prefix={train: 3}", "expected a path or a list"),
        ("model.data.data_prefix=3", "expected a path, a list or"),
        ("exp_manager.checkpoint_callback_params.monitor=loss", "unknown metric 'loss'"),
    ],
)
def test_a_value_is_refused(override: str, words: str) -> None:
    (fault,) = faults(override)
    key = override.partition("=")[0]
    assert fault.startswith(f"command line: `{override}`: {key}: ")
    assert words in fault


@pytest.mark.parametrize(
    "override",
    [
        "trainer.num_nodes=2",
        "trainer.devices=8",
        "trainer.devices=[0,1]",
        "trainer.max_time=00:03:30:00",
        "exp_manager.max_time_per_run=00:03:30:00",
        "exp_manager.resume_from_checkpoint=/x",
        "exp_manager.create_mlflow_logger=true",
        "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=true",
        "pretrained_checkpoint.restore_from_path=/m/gpt.nemo",
        "pretrained_checkpoint.restore_from_path=/m/gpt.nemo/",
        "model.peft.peft_scheme=lora",
        "model.peft.restore_from_path=/x",
        "model.tensor_model_parallel_size=2",
        "model.context_parallel_size=2",
        "model.expert_model_parallel_size=2",
        "model.sequence_parallel=true",
        "model.activations_checkpoint_num_layers=1",
        "model.data.apply_ftfy=true",
        "model.data.chat_prompt_tokens.turn_start=x",
    ],
)
def test_what_comes_later_is_refused_with_a_way_out(override: str) -> None:
    (fault,) = faults(override)
    reason, _, way_out = fault.partition(" not in this version: ")
    assert override.partition("=")[0] in reason
    assert len(way_out) > 5


@pytest.mark.parametrize(
    "override",
    [
        "model.pipeline_model_parallel_size=2",
        "model.hidden_dropout=0.1",
        "model.attention_dropout=0.1",
        "model.ffn_dropout=0.1",
        "model.peft.lora_tuning.weight_tying=true",
        "model.seq_len_interpolation_factor=2",
        "model.override_vocab_size=100",
    ],
)
def test_what_is_refused_by_design(override: str) -> None:
    (fault,) = faults(override)
    assert ": set it to " in fault or "must be 0 in DPO" in fault


def test_packed_jsonl_asks_for_packing() -> None:
    assert config("model.data.data_impl=packed_jsonl").model.data.packing
    (fault,) = faults("model.data.data_impl=packed_jsonl", "model.data.packing=false")
    assert "model.data.packing: contradicts data_impl=packed_jsonl" in fault


def test_all_faults_are_reported_together_names_first(yaml_file: Callable[[str], Path]) -> None:
    path = yaml_file("model:\n  optim:\n    lr: abc\n  micro_batch_size: 0\n  sed: 1\n")
    found = faults("trainer.devices=4", "++trainer.dvices=1", "model.dpo.preference_loss=dbo", "x=y=z", file=path)
    kinds = ["model.sed", "trainer.dvices", "'dbo'", "x=y=z", "lr: expected", "devices: more", "micro_batch_size: must"]
    assert len(found) == len(kinds)
    assert all(kind in fault for kind, fault in zip(kinds, found, strict=True))


def test_one_override_can_hold_several_faults() -> None:
    assert len(faults("model.optim={lr: x, weight_decay: y, sched: {min_lr: -1, nmae: z}}")) == 4
    assert len(faults("model.optim={lr: -1, weight_decay: -1}")) == 2


# --- flags, environment, what is missing ------------------------------------------------------------------------------


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
    assert (no_flex.config.model.attention_backend, no_flex.forbidden_attention) == ("auto", {"flex"})
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
    for flags in (("conf", None, None), (None, "mine", None), (None, "other", str(tmp_path))):
        with pytest.raises(ConfigError, match="there is no such file"):
            find_config(*flags, tmp_path)


# --- out and in again -------------------------------------------------------------------------------------------------

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
        trainer=TrainerConfig(deterministic=True, dpo=replace(TrainerConfig().dpo, val_check_interval=val)),
        exp_manager=ExpManagerConfig(name=name, wandb_logger_kwargs=WandbConfig(name=wandb, tags=tuple(tags))),
        model=ModelConfig(
            optim=OptimConfig(lr=lr, sched=SchedConfig(warmup_ratio=0.1, warmup_steps=None)),
            data=DataConfig(data_prefix=DataFiles(train=(DataSource(path, lr), DataSource(path, 1.0)))),
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
    defaults = {key: all_keys()[key].default for key in UNLISTED}
    plain = {key: value for key, value in defaults.items() if isinstance(value, bool | int | float)}
    assert len(plain) > 10
    assert config(*(f"+{key}={value}" for key, value in plain.items())) == config()


def test_composing_needs_no_torch() -> None:
    code = "import sys, dpolish.config as c; c.compose(); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
