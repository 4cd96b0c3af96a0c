"""The tree of SFT, composed: the guide's commands, NeMo-Aligner's own file, data files, batch sizes, templates."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dpolish.config import SftConfig, compose, find_config, require_complete, to_yaml
from dpolish.config.data_prefix import DataSource, DataSources
from dpolish.config.schema import (
    ChatPromptTokens,
    ExpManagerConfig,
    SftDataConfig,
    SftFilesConfig,
    SftModelConfig,
    SftTrainerConfig,
    WandbConfig,
)
from dpolish.errors import ConfigError
from tests.config.composing import NEMO_SFT_YAML, composed_sft, faults, sft_config, sft_faults, value_of

TRAIN, VALIDATION = "model.data.train_ds", "model.data.validation_ds"

PROMPT_RESPONSE = [
    "trainer.precision=bf16",
    "trainer.num_nodes=1",
    "trainer.devices=8",
    "trainer.sft.max_steps=-1",
    "trainer.sft.limit_val_batches=40",
    "trainer.sft.val_check_interval=1000",
    "model.megatron_amp_O2=True",
    "model.restore_from_path=/path/to/mcore_gpt.nemo",
    "model.optim.lr=5e-6",
    "model.answer_only_loss=True",
    "model.data.num_workers=0",
    f"{TRAIN}.micro_batch_size=1",
    f"{TRAIN}.global_batch_size=128",
    f"{TRAIN}.file_path=/path/to/train.jsonl",
    f"{VALIDATION}.micro_batch_size=1",
    f"{VALIDATION}.global_batch_size=128",
    f"{VALIDATION}.file_path=/path/to/validation.jsonl",
    "exp_manager.create_wandb_logger=True",
    "exp_manager.explicit_log_dir=/results",
    "exp_manager.wandb_logger_kwargs.project=sft_run",
    "exp_manager.wandb_logger_kwargs.name=dolly_sft_run",
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end=True",
    "exp_manager.resume_if_exists=True",
    "exp_manager.resume_ignore_no_checkpoint=True",
    "exp_manager.create_checkpoint_callback=True",
    "exp_manager.checkpoint_callback_params.monitor=val_loss",
]
CHAT = [
    *PROMPT_RESPONSE[:-1],
    "model.data.chat=True",
    f"{TRAIN}.max_seq_length=4096",
    f"{VALIDATION}.max_seq_length=4096",
    "exp_manager.checkpoint_callback_params.monitor=validation_loss",
]
PACKED = [*CHAT, f"+{TRAIN}.packed_sequence=True"]
LARGER = [*PROMPT_RESPONSE, "model.tensor_model_parallel_size=2"]


@pytest.mark.parametrize("command", [PROMPT_RESPONSE, CHAT, PACKED, LARGER])
def test_a_command_of_the_guide_as_it_is(command: Sequence[str]) -> None:
    result = composed_sft(*command)
    require_complete(result.config)
    ours = result.config
    assert (ours.trainer.num_nodes, ours.trainer.devices) == (1, 8)
    assert ours.model.tensor_model_parallel_size == (2 if command is LARGER else 1)
    assert ours.restore_from_path == "/path/to/mcore_gpt.nemo"
    assert ours.exp_manager.checkpoint_callback_params.save_nemo_on_train_end
    assert (ours.trainer.precision, ours.loop.limit_val_batches, ours.loop.val_check_interval) == ("bf16", 40, 1000)
    assert (ours.model.optim.lr, ours.model.global_batch_size, ours.model.micro_batch_size) == (5e-6, 128, 1)
    assert ours.model.data.train_ds.sources == (DataSource("/path/to/train.jsonl"),)
    assert ours.model.data.validation_ds.sources == (DataSource("/path/to/validation.jsonl"),)
    assert ours.exp_manager.wandb_logger_kwargs == WandbConfig(project="sft_run", name="dolly_sft_run")
    assert {line.partition(": ")[0] for line in result.ignored} <= {
        "model.megatron_amp_O2",
        f"{TRAIN}.packed_sequence",
    }
    assert len(result.ignored) == (2 if command is PACKED else 1)
    chats = command in (CHAT, PACKED)
    assert ours.model.data.chat == chats
    assert {line.partition(": ")[0] for line in result.without_effect} == (
        {"exp_manager.checkpoint_callback_params.monitor"} if chats else set()
    )


def test_gpt_sft_yaml_holds_our_defaults() -> None:
    result = composed_sft(file=NEMO_SFT_YAML)
    ours = sft_config()
    tokens = ChatPromptTokens(
        system_turn_start="\x00", turn_start="\x11", label_start="\x12", end_of_turn="\n", end_of_name="\n"
    )
    trainer = replace(ours.trainer, accelerator="gpu", precision="bf16")
    data = replace(ours.model.data, chat_prompt_tokens=tokens)
    model = replace(ours.model, answer_only_loss=False, data=data)
    assert result.config == replace(ours, trainer=trainer, model=model)
    assert (ours.trainer.accelerator, ours.trainer.precision) == ("auto", None)
    assert ours.model.data.prompt_tokens is None


def test_gpt_sft_yaml_tells_what_it_says_in_vain() -> None:
    result = composed_sft(file=NEMO_SFT_YAML)
    (told,) = result.without_effect
    assert told.startswith("model.answer_only_loss: prompts are masked all the same")
    named = {line.partition(": ")[0] for line in result.ignored}
    assert {"trainer.logger", f"{TRAIN}.memmap_workers", "model.steerlm2.micro_batch_size"} <= named
    with pytest.raises(ConfigError, match=r"(?s)restore_from_path is missing.*--model.*file_path is missing.*--train"):
        require_complete(result.config)


def test_each_tree_refuses_the_file_of_the_other() -> None:
    dpo = NEMO_SFT_YAML.with_name("gpt_dpo.yaml")
    assert sft_faults(file=dpo)[0] == f"{dpo}:9: trainer.dpo: SFT has trainer.sft"
    told = faults(file=NEMO_SFT_YAML)
    assert "unknown key 'name'" in told[0]
    assert told[1] == f"{NEMO_SFT_YAML}:8: trainer.sft: DPO has trainer.dpo"


def test_the_four_flags() -> None:
    result = compose(root=SftConfig, model="m", train=["a", "b"], validation=["c"], output="o", environ={})
    data = result.config.model.data
    assert result.config.model.restore_from_path == "m"
    assert (data.train_ds.sources, data.validation_ds.sources) == (
        (DataSource("a"), DataSource("b")),
        (DataSource("c"),),
    )
    assert result.config.exp_manager.explicit_log_dir == "o"
    require_complete(result.config)
    with pytest.raises(ConfigError, match=r"--train a contradicts command line: `model.data.train_ds.file_path=b`"):
        compose(None, [f"{TRAIN}.file_path=b"], root=SftConfig, train=["a"], environ={})
    same = [f"{TRAIN}.file_path=a", "model.restore_from_path=m"]
    assert compose(None, same, root=SftConfig, model="m", train=["a"], environ={}).config.restore_from_path == "m"


def test_a_flag_outdoes_whatever_a_file_says(yaml_file: Callable[[str], Path]) -> None:
    shares = "concat_sampling_probabilities: [0.5, 0.5]"
    path = yaml_file(
        f"model: {{data: {{train_ds: {{file_names: [x, y], {shares}}}, validation_ds: {{file_names: [z]}}}}}}"
    )
    result = compose(path, root=SftConfig, train=["a"], environ={})
    assert result.config.model.data.train_ds.sources == (DataSource("a"),)
    assert result.config.model.data.validation_ds.sources == (DataSource("z"),)
    assert result.origin[f"{TRAIN}.file_names"] == "default"
    with pytest.raises(ConfigError, match="file_path is given too"):
        compose(None, [f"{TRAIN}.file_names=[b]"], root=SftConfig, train=["a"], environ={})


def test_its_own_file_is_the_default_one(tmp_path: Path, yaml_file: Callable[[str], Path]) -> None:
    assert find_config(None, "gpt_sft", None, tmp_path, SftConfig) is None
    assert find_config(None, None, None, tmp_path, root=SftConfig) is None
    with pytest.raises(ConfigError, match="there is no such file"):
        find_config(None, "gpt_dpo", None, tmp_path, SftConfig)
    assert composed_sft(file=yaml_file("defaults: [gpt_sft, _self_]")).config == sft_config()
    assert "'gpt_dpo' is another file" in sft_faults(file=yaml_file("defaults: [gpt_dpo]"))[0]


@pytest.mark.parametrize(
    ("overrides", "sources"),
    [
        ([f"{TRAIN}.file_path=a"], [("a", None)]),
        ([f"{TRAIN}.file_path=[a,b]"], [("a", None), ("b", None)]),
        ([f"{TRAIN}.file_path=[0.3,a,0.7,b]"], [("a", 0.3), ("b", 0.7)]),
        ([f"{TRAIN}.file_names=[a,b]"], [("a", None), ("b", None)]),
        (
            [f"{TRAIN}.file_names=[a,b]", f"{TRAIN}.concat_sampling_probabilities=[0.25,0.75]"],
            [("a", 0.25), ("b", 0.75)],
        ),
        ([f"{TRAIN}.file_path=[a,b]", f"{TRAIN}.concat_sampling_probabilities=[1,3]"], [("a", 1.0), ("b", 3.0)]),
        ([f"{TRAIN}.file_path=???", f"{TRAIN}.file_names=[a]"], [("a", None)]),
        ([f"{TRAIN}={{file_path: a}}"], [("a", None)]),
        ([], []),
    ],
)
def test_the_ways_to_name_files(overrides: Sequence[str], sources: list[tuple[str, float | None]]) -> None:
    found = sft_config(*overrides).model.data.train_ds.sources
    assert found == tuple(DataSource(*source) for source in sources)


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        ([f"{TRAIN}.file_path=3"], "file_path", "expected a path or a list of paths, got 3"),
        ([f"{TRAIN}.file_path="], "file_path", "a path is empty"),
        ([f"{TRAIN}.file_path={{train: [a]}}"], "file_path", "expected a path or a list of paths"),
        ([f"{TRAIN}.file_path=[0.3,a,b]"], "file_path", "must alternate"),
        ([f"{TRAIN}.file_path=a", f"{TRAIN}.file_names=[b]"], "file_names", "file_path is given too"),
        ([f"{TRAIN}.concat_sampling_probabilities=[1]"], "concat_sampling_probabilities", "1 shares for 0 files"),
        (
            [f"{TRAIN}.file_names=[a,b]", f"{TRAIN}.concat_sampling_probabilities=[1,0]"],
            "concat_sampling_probabilities",
            "must all be above 0, got 1, 0",
        ),
        (
            [f"{TRAIN}.file_path=[1,a]", f"{TRAIN}.concat_sampling_probabilities=[1]"],
            "concat_sampling_probabilities",
            "file_path has weights already",
        ),
    ],
)
def test_the_ways_to_name_files_wrongly(overrides: Sequence[str], key: str, words: str) -> None:
    (fault,) = sft_faults(*overrides)
    assert f"{TRAIN}.{key}: " in fault
    assert words in fault


def test_validation_has_no_shares() -> None:
    (fault,) = sft_faults(f"{VALIDATION}.file_names=[a]", f"{VALIDATION}.concat_sampling_probabilities=[1]")
    assert f"{VALIDATION}.concat_sampling_probabilities: validation is the exact mean" in fault


def test_a_batch_size_is_one_value_wherever_it_is_written() -> None:
    sizes = ("model", TRAIN, VALIDATION)
    for where in ("model", TRAIN):
        result = composed_sft(f"{where}.global_batch_size=64", f"{where}.micro_batch_size=4")
        assert [value_of(result, f"{part}.global_batch_size") for part in sizes] == [64] * 3
        assert [value_of(result, f"{part}.micro_batch_size") for part in sizes] == [4] * 3
    apart = composed_sft("model.global_batch_size=64", f"{VALIDATION}.global_batch_size=8")
    assert [value_of(apart, f"{part}.global_batch_size") for part in sizes] == [64, 64, 8]
    agreed = sft_config("model.global_batch_size=64", f"{TRAIN}.global_batch_size=64")
    assert agreed == sft_config("model.global_batch_size=64")
    (fault,) = sft_faults("model.global_batch_size=64", f"{TRAIN}.global_batch_size=32")
    assert f"model.global_batch_size: 64 contradicts {TRAIN}.global_batch_size=32" in fault


@pytest.mark.parametrize("where", ["model", TRAIN])
@pytest.mark.parametrize("value", ["0", "x", "${model.nothing}"])
def test_a_bad_batch_size_is_told_once_where_it_was_written(where: str, value: str) -> None:
    override = f"{where}.global_batch_size={value}"
    (fault,) = sft_faults(override, f"{TRAIN}.max_seq_length=9")
    assert fault.startswith(f"command line: `{override}`: {where}.global_batch_size: ")


def test_interpolations_of_nemos_file_may_be_given_again(yaml_file: Callable[[str], Path]) -> None:
    text = "model: {global_batch_size: '${.data.train_ds.global_batch_size}', data: {train_ds: {global_batch_size: 8}}}"
    assert composed_sft(file=yaml_file(text)).config == sft_config(f"{TRAIN}.global_batch_size=8")
    alone = "model: {global_batch_size: '${.data.train_ds.global_batch_size}'}"
    assert composed_sft(file=yaml_file(alone)).config == sft_config()


def test_validation_follows_training() -> None:
    data = sft_config(
        f"{TRAIN}.max_seq_length=99",
        f"{TRAIN}.add_eos=false",
        f"{TRAIN}.add_bos=true",
        f"{TRAIN}.label_key=a",
        f"{TRAIN}.prompt_template='{{q}} ${{x}} {{a}}'",
        f"{TRAIN}.truncation_field=q",
        f"{TRAIN}.truncation_method=left",
        f"{TRAIN}.min_seq_length=3",
    ).model.data
    followed = replace(data.train_ds, shuffle=False, truncation_method="right", min_seq_length=1)
    assert data.validation_ds == followed  # NeMo-Aligner's file lets the last two not follow
    assert sft_config("model.encoder_seq_length=77").seq_length == 77
    assert sft_config("model.encoder_seq_length=77").model.data.validation_ds.max_seq_length == 77
    assert sft_config(f"{TRAIN}.max_seq_length=null").seq_length is None
    assert sft_config("name=mine").exp_manager.name == "mine"
    assert sft_config("name=mine", "exp_manager.name=its").exp_manager.name == "its"
    assert sft_config("trainer.sft.val_check_interval=0.5").loop.save_interval == 0.5


def test_what_was_chosen_is_known_through_what_it_follows() -> None:
    result = composed_sft("model.encoder_seq_length=4096")
    assert result.chosen(f"{VALIDATION}.max_seq_length")
    assert result.origin[f"{VALIDATION}.max_seq_length"] == "default"
    assert not composed_sft().chosen(f"{VALIDATION}.max_seq_length")
    assert composed_sft(f"{TRAIN}.label_key=output").chosen(f"{TRAIN}.label_key")


@pytest.mark.parametrize(
    ("written", "template"),
    [
        ("'{input} {output}'", "{input} {output}"),
        ('"{input}, {output}"', "{input}, {output}"),
        ("'Q: {input}\\nA: {output}'", "Q: {input}\nA: {output}"),
        ("'Q: {input}\nA: {output}'", "Q: {input}\nA: {output}"),
        ("'${input} costs ${x} $ {output}'", "${input} costs ${x} $ {output}"),
        (
            "'<extra_id_1>User\\n{input}\\n<extra_id_1>Assistant\\n{output}'",
            "<extra_id_1>User\n{input}\n<extra_id_1>Assistant\n{output}",
        ),
        ("'\\\\n{output}'", "\\n{output}"),
    ],
)
def test_a_prompt_template_is_kept_to_the_letter(written: str, template: str, yaml_file: Callable[[str], Path]) -> None:
    ours = sft_config(f"{TRAIN}.prompt_template={written}")
    data = ours.model.data
    assert data.train_ds.prompt_template == data.validation_ds.prompt_template == template
    assert composed_sft(file=yaml_file(to_yaml(ours))).config == ours


def test_a_prompt_template_names_its_fields() -> None:
    files = SftFilesConfig(prompt_template="{a}{b c}-{output}", truncation_field=" a, b c ,")
    assert files.template_fields == ("a", "b c", "output")
    assert files.truncated_fields == ("a", "b c")


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        (f"{TRAIN}.prompt_template='{{input}}'", None, "must end with {output}, the answer (label_key)"),
        (f"{TRAIN}.prompt_template='{{output}} {{input}}'", None, "must end with {output}"),
        (f"{TRAIN}.prompt_template=", None, "must end with {output}"),
        (f"{TRAIN}.prompt_template='costs ${{ {{output}}'", None, "token recognition error"),
        (f"{TRAIN}.max_seq_length=1", None, "must be 2 or more"),
        (f"{TRAIN}.min_seq_length=-1", None, "must be 0 or more"),
        (f"{VALIDATION}.min_seq_length=5000", None, "must be max_seq_length=4096 or less, got 5000"),
        (f"{TRAIN}.truncation_method=middle", None, "unknown value 'middle'"),
        (f"{TRAIN}.shuffle=1", None, "expected true or false"),
        (f"{TRAIN}.drop_last=maybe", None, "expected true or false"),
        (f"{TRAIN}.label_key=???", None, "missing"),
        ("model.loss_average=tokens", None, "unknown value 'tokens'. Did you mean 'token'? Known: token, example"),
        ("model.data.trained_turns=first", None, "unknown value 'first'"),
        ("model.data.on_overlong=cut", None, "unknown value 'cut'"),
        ("model.data.chat_template=nmo", None, "unknown template 'nmo'. Did you mean 'nemo'?"),
        ("model.data.chat=yes", None, "expected true or false"),
        ("model.restore_from_path=", None, "is empty; is a shell variable not set?"),
        ("trainer.devices=0", None, "must be 1 or more, got 0"),
        ("trainer.devices=[0,0]", None, "expected different device indices, got [0, 0]"),
        ("trainer.hang_timeout=1", None, "must be 5 or more, got 1"),
        ("model.tensor_model_parallel_size=0", None, "must be 1 or more, got 0"),
        ("model.fsdp_sharding_strategy=grad", None, "unknown value 'grad'. Known: auto, full, hybrid, replicate"),
        ("model.attention_dropout=0.1", None, "dropout is not in this version: set it to 0"),
        ("name=", None, "is empty"),
        ("trainer.sft.val_check_interval=2.5", None, "a count has no point"),
        ("trainer.sft.max_steps=0", None, "must be 1 or more"),
        ("model.resume_from_checkpoint=/c", "exp_manager.resume_from_checkpoint", "resuming is not in this version"),
        (
            "exp_manager.checkpoint_callback_params.monitor=val_acc",
            None,
            "SFT does not measure 'val_acc'. Known: val_l",
        ),
        ("exp_manager.checkpoint_callback_params.monitor=loss", None, "unknown metric 'loss'"),
    ],
)
def test_a_value_is_refused(override: str, key: str | None, words: str) -> None:
    (fault,) = sft_faults(override)
    assert fault.startswith(f"command line: `{override}`: {key or override.partition('=')[0]}: ")
    assert words in fault


def test_each_tree_monitors_its_own_metrics() -> None:
    key = "exp_manager.checkpoint_callback_params.monitor"
    for monitor in ("val_loss", "validation_loss", "val/perplexity"):
        assert value_of(composed_sft(f"{key}={monitor}"), key) == monitor
    (fault,) = faults(f"{key}=val_perplexity")
    assert "DPO does not measure 'val_perplexity'" in fault


def test_only_what_is_cut_must_be_in_the_template() -> None:
    template = [f"{TRAIN}.prompt_template='{{q}} {{output}}'"]
    sft_config(*template)
    found = sft_faults(*template, "model.data.on_overlong=truncate")
    assert any(
        f"{TRAIN}.truncation_field: input is not in prompt_template, which has q, output" in one for one in found
    )
    sft_config(*template, "model.data.on_overlong=truncate", f"{TRAIN}.truncation_field='q,output'")


def test_use_flash_attention_is_a_switch_of_the_backends() -> None:
    off = composed_sft("model.use_flash_attention=false")
    assert (off.forbidden_attention, off.config.model.attention_backend) == ({"segments"}, "auto")
    assert composed_sft("model.use_flash_attention=true").forbidden_attention == frozenset()
    (fault,) = sft_faults("model.use_flash_attention=false", "model.attention_backend=segments")
    assert "model.attention_backend: segments contradicts model.use_flash_attention=false" in fault
    no_flex = {"NVTE_FUSED_ATTN": "0"}
    both = compose(None, ["model.use_flash_attention=false"], root=SftConfig, environ=no_flex)
    assert both.config.model.attention_backend == "dense"


def test_nemos_variables_of_the_environment() -> None:
    reproducible = compose(root=SftConfig, environ={"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"})
    assert reproducible.config.trainer.deterministic is True
    assert reproducible.origin["trainer.deterministic"] == "environment"


def test_what_has_no_effect_is_told() -> None:
    told = composed_sft(
        f"{TRAIN}.drop_last=false",
        f"{VALIDATION}.shuffle=true",
        f"{TRAIN}.shuffle=false",
        "trainer.sft.save_interval=7",
    ).without_effect
    assert {line.partition(": ")[0] for line in told} == {
        f"{TRAIN}.drop_last",
        f"{VALIDATION}.shuffle",
        "trainer.sft.save_interval",
    }
    assert composed_sft("trainer.sft.save_interval=100").without_effect == ()  # as it is without being said


@pytest.mark.parametrize(
    ("override", "token"),
    [
        ("turn_start='<extra_id_1>'", "<extra_id_1>"),
        ('turn_start="<extra_id_1>"', "<extra_id_1>"),
        ("turn_start=", ""),
        ("turn_start='\\x11'", "\x11"),
        ("turn_start='<|im_end|>\\n'", "<|im_end|>\n"),
        ("turn_start='<|im_end|>\n'", "<|im_end|>\n"),
        ("turn_start='\x11'", "\x11"),
        ("turn_start=3", "3"),
    ],
)
def test_a_token_of_the_chat_format(override: str, token: str, yaml_file: Callable[[str], Path]) -> None:
    ours = sft_config(f"model.data.chat_prompt_tokens.{override}")
    assert ours.model.data.chat_prompt_tokens == ChatPromptTokens(turn_start=token)
    assert composed_sft(file=yaml_file(to_yaml(ours))).config == ours


def test_the_chat_tokens_of_a_file(yaml_file: Callable[[str], Path]) -> None:
    text = 'model: {data: {chat_prompt_tokens: {system_turn_start: "\\x00", end_of_turn: "\\x0A"}}}'
    for tree in (compose(yaml_file(text), environ={}), composed_sft(file=yaml_file(text))):
        assert tree.config.model.data.prompt_tokens == ("\x00", "\x11", "\x12", "\n", "\n")


texts = st.text(st.characters(exclude_categories=["Cs"]))
names = texts.filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(
    name=names,
    path=names,
    token=texts.filter(bool),
    template=texts,
    share=st.floats(1e-12, 1),
    batch=st.integers(1, 2**40),
)
def test_a_configuration_survives_its_own_yaml(
    name: str,
    path: str,
    token: str,
    template: str,
    share: float,
    batch: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rows = SftFilesConfig(
        file_path=DataSources((DataSource(path, share), DataSource(path, 1.0))),
        global_batch_size=batch,
        prompt_template=f"{template}{{output}}",
    )
    named = SftFilesConfig(file_names=(path, name), label_key=name, prompt_template=f"{{{name}}}")
    tokens = ChatPromptTokens(turn_start=token, end_of_turn=token)
    before = SftConfig(
        name=name,
        trainer=SftTrainerConfig(deterministic=True),
        exp_manager=ExpManagerConfig(name=path),
        model=SftModelConfig(
            global_batch_size=batch,
            data=SftDataConfig(train_ds=rows, validation_ds=named, chat_prompt_tokens=tokens),
        ),
    )
    file = tmp_path_factory.mktemp("yaml") / "config.yaml"
    file.write_text(to_yaml(before), encoding="utf-8")
    assert compose(file, root=SftConfig, environ={}).config == before


@pytest.mark.parametrize(
    "overrides", [(), PACKED, LARGER, ("model.global_batch_size=8", f"{TRAIN}.file_names=[a]"), ("name=x",)]
)
def test_what_was_composed_composes_again(overrides: Sequence[str], yaml_file: Callable[[str], Path]) -> None:
    before = sft_config(*overrides)
    again = composed_sft(file=yaml_file(to_yaml(before)))
    assert again.config == before
    assert again.ignored == ()


def test_composing_needs_no_torch() -> None:
    code = (
        "import sys, dpolish.config as c; c.compose(root=c.SftConfig); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
