"""Every key of NeMo-Aligner's gpt_sft.yaml, our own, and what guides add: each has the verdict decided for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dpolish.config import SftConfig
from dpolish.config.keys import all_keys
from dpolish.config.nemo_keys import SFT
from tests.config.composing import NEMO_SFT_YAML, composed_sft, sft_config, sft_faults, value_of

TRAIN, VALIDATION = "model.data.train_ds", "model.data.validation_ds"

# fmt: off
ANOTHER_VALUE: dict[str, object] = {  # a value other than the default, where one is accepted
    "name": "n",
    "trainer.num_nodes": 2,
    "trainer.devices": 8,
    "trainer.accelerator": "cpu",
    "trainer.precision": "bf16-mixed",
    "trainer.sft.max_epochs": 3,
    "trainer.sft.max_steps": 7,
    "trainer.sft.val_check_interval": 0.25,
    "trainer.sft.save_interval": 50,
    "trainer.sft.limit_train_batches": 5,
    "trainer.sft.limit_val_batches": 40,
    "trainer.sft.gradient_clip_val": 0.0,
    "exp_manager.explicit_log_dir": "/r",
    "exp_manager.exp_dir": "/r",
    "exp_manager.name": "n",
    "exp_manager.create_wandb_logger": True,
    "exp_manager.wandb_logger_kwargs.project": "p",
    "exp_manager.wandb_logger_kwargs.name": "n",
    "exp_manager.resume_if_exists": False,
    "exp_manager.resume_ignore_no_checkpoint": False,
    "exp_manager.create_checkpoint_callback": False,
    "exp_manager.checkpoint_callback_params.monitor": "validation_loss",
    "exp_manager.checkpoint_callback_params.save_top_k": 3,
    "exp_manager.checkpoint_callback_params.mode": "max",
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": True,
    "exp_manager.checkpoint_callback_params.filename": "{step}",
    "model.seed": 7,
    "model.restore_from_path": "/m/gpt.nemo",
    "model.tensor_model_parallel_size": 2,
    "model.sequence_parallel": True,
    "model.encoder_seq_length": 2048,
    "model.activations_checkpoint_granularity": "full",
    "model.answer_only_loss": False,
    "model.use_flash_attention": True,
    "model.global_batch_size": 64,
    "model.micro_batch_size": 4,
    "model.peft.lora_tuning.target_modules": ["all"],
    "model.peft.lora_tuning.adapter_dim": 8,
    "model.peft.lora_tuning.adapter_dropout": 0.1,
    "model.peft.lora_tuning.column_init_method": "normal",
    "model.peft.lora_tuning.row_init_method": "xavier",
    "model.peft.lora_tuning.layer_selection": [1, 12],
    "model.data.chat": True,
    "model.data.chat_prompt_tokens.system_turn_start": "<extra_id_0>",
    "model.data.chat_prompt_tokens.turn_start": "<extra_id_1>",
    "model.data.chat_prompt_tokens.label_start": "<extra_id_2>",
    "model.data.chat_prompt_tokens.end_of_turn": "<|im_end|>",
    "model.data.chat_prompt_tokens.end_of_name": ":",
    "model.data.sample": True,
    "model.data.num_workers": 2,
    f"{TRAIN}.file_path": ["a.jsonl"],
    f"{TRAIN}.global_batch_size": 64,
    f"{TRAIN}.micro_batch_size": 2,
    f"{TRAIN}.shuffle": False,
    f"{TRAIN}.max_seq_length": None,
    f"{TRAIN}.min_seq_length": 16,
    f"{TRAIN}.drop_last": False,
    f"{TRAIN}.add_eos": False,
    f"{TRAIN}.add_bos": True,
    f"{TRAIN}.truncation_field": "output",
    f"{TRAIN}.prompt_template": "Q: {input} A: {output}",
    f"{TRAIN}.truncation_method": "left",
    f"{VALIDATION}.file_path": ["b.jsonl"],
    f"{VALIDATION}.global_batch_size": 32,
    f"{VALIDATION}.micro_batch_size": 8,
    f"{VALIDATION}.shuffle": True,
    f"{VALIDATION}.max_seq_length": 512,
    f"{VALIDATION}.min_seq_length": 2,
    f"{VALIDATION}.drop_last": False,
    f"{VALIDATION}.add_eos": False,
    f"{VALIDATION}.add_bos": True,
    f"{VALIDATION}.truncation_field": "output",
    f"{VALIDATION}.prompt_template": "{input}|{output}",
    f"{VALIDATION}.truncation_method": "left",
    "model.optim.name": "adamw",
    "model.optim.lr": 5e-6,
    "model.optim.weight_decay": 0.1,
    "model.optim.betas": [0.9, 0.999],
    "model.optim.sched.name": "WarmupAnnealing",
    "model.optim.sched.warmup_steps": 0,
    "model.optim.sched.constant_steps": None,
    "model.optim.sched.min_lr": 0.0,
}
OUR_OWN: dict[str, object] = {  # and what NeMo-Aligner knows besides its file
    "trainer.deterministic": True,
    "trainer.hang_timeout": 30.0,
    "model.context_parallel_size": 2,
    "model.expert_model_parallel_size": 4,
    "model.fsdp_sharding_strategy": "replicate",
    "model.fsdp_cpu_offload": True,
    "model.torch_compile": True,
    "exp_manager.create_tensorboard_logger": True,
    "model.attention_backend": "dense",
    "model.loss_average": "example",
    "model.data.packing": False,
    "model.data.tokens_per_micro_batch": 4096,
    "model.data.on_overlong": "truncate",
    "model.data.format": "alpaca",
    "model.data.chat_template": "extra_id",
    "model.data.trained_turns": "last",
    f"{TRAIN}.file_names": ["a.jsonl", "b.jsonl"],
    f"{VALIDATION}.file_names": ["v.jsonl"],
    "model.optim.eps": 1e-6,
    "model.optim.sched.warmup_ratio": 0.1,
}
WITH_COMPANY = {  # a value that needs another one beside it
    f"{TRAIN}.label_key": ("answer", "prompt_template='{input} {answer}'"),
    f"{VALIDATION}.label_key": ("answer", "prompt_template='{input} {answer}'"),
}
# fmt: on
DEFAULT_AND_REFUSED = {
    "trainer.max_time": ("null", "x"),
    "model.pipeline_model_parallel_size": ("1", "2"),
    "model.resume_from_checkpoint": ("null", "x"),
    "model.activations_checkpoint_num_layers": ("null", "1"),
    "model.seq_len_interpolation_factor": ("null", "2"),
    "model.hidden_dropout": ("0.0", "0.1"),
    "model.attention_dropout": ("0.0", "0.1"),
    "model.ffn_dropout": ("0.0", "0.1"),
    "model.peft.peft_scheme": ("none", "lora"),
    "model.peft.restore_from_path": ("null", "x"),
    "model.peft.lora_tuning.weight_tying": ("false", "true"),
}
WITHOUT_MEANING = {
    *(f"trainer.{name}" for name in ("logger", "enable_checkpointing", "use_distributed_sampler")),
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps")),
    *(f"exp_manager.checkpoint_callback_params.{name}" for name in ("model_parallel_size", "save_best_model")),
    *(f"model.{name}" for name in ("save_nemo_on_validation_end", "sync_batch_comm", "megatron_amp_O2")),
    *(f"model.activations_checkpoint_{name}" for name in ("method", "layers_per_pipeline")),
    "model.gradient_as_bucket_view",
    *(f"model.steerlm2.{name}" for name in ("forward_micro_batch_size", "micro_batch_size")),
    "model.peft.lora_tuning.position_embedding_strategy",
    *(
        f"{rows}.{name}"
        for rows in (TRAIN, VALIDATION)
        for name in ("memmap_workers", "add_sep", "index_mapping_dir", "hf_dataset")
    ),
    f"{VALIDATION}.output_original_text",
}
ADDED = [
    f"+{TRAIN}.packed_sequence=True",
    f"++{TRAIN}.packed_sequence_return_cu_seqlen=False",
    f"+{VALIDATION}.packed_sequence=True",
    f"+{TRAIN}.file_names=[a,b]",
    f"+{TRAIN}={{file_names: [a,b], concat_sampling_probabilities: [0.3,0.7]}}",
    f"+{VALIDATION}.file_names=[a]",
    "++model.mcore_gpt=True",
    "++model.transformer_engine=True",
    "++model.dist_ckpt_load_strictness=log_all",
    "++model.context_parallel_size=2",
    "+model.expert_model_parallel_size=2",
    "+model.fsdp_sharding_strategy=hybrid",
    "++model.override_vocab_size=null",
    "++model.tokenizer.library=megatron",
    "++model.optim.bucket_cap_mb=200",
    "++model.data.dataloader_type=single",
    "++exp_manager.mlflow_logger_kwargs.tracking_uri=x",
    "+exp_manager.wandb_logger_kwargs.entity=e",
    "+exp_manager.max_time_per_run=null",
    "+exp_manager.resume_from_checkpoint=null",
    "+output_dir=/o",
    "+pack_sizes=[4096]",
    "hydra.run.dir=/x",
    "++precision=bf16",
]


def nemo_keys(file: Path) -> Iterator[str]:
    def leaves(tree: object, prefix: str) -> Iterator[str]:
        if isinstance(tree, dict):
            for name, inner in tree.items():
                yield from leaves(inner, f"{prefix}.{name}")
        else:
            yield prefix[1:]

    return leaves(OmegaConf.to_container(OmegaConf.load(file)), "")


def test_every_key_of_gpt_sft_yaml_has_one_verdict() -> None:
    verdicts = [*ANOTHER_VALUE, *WITH_COMPANY, *DEFAULT_AND_REFUSED, *WITHOUT_MEANING]
    assert sorted(verdicts) == sorted(nemo_keys(NEMO_SFT_YAML))


def as_override(key: str, value: object) -> str:
    return f"{key}=" + {str: f"'{value}'", type(None): "null"}.get(type(value), str(value))


@pytest.mark.parametrize(("key", "value"), [*ANOTHER_VALUE.items(), *OUR_OWN.items()])
def test_a_key_with_a_meaning_takes_its_value(key: str, value: object) -> None:
    result = composed_sft(as_override(key, value))
    found = value_of(result, key)
    assert (found, type(found)) == (value, type(value))
    assert value != all_keys(SftConfig)[key].default
    assert (result.ignored, result.origin[key]) == ((), "given")


@pytest.mark.parametrize(("key", "value", "company"), [(key, *pair) for key, pair in WITH_COMPANY.items()])
def test_a_label_key_needs_its_template(key: str, value: str, company: str) -> None:
    section = key.rpartition(".")[0]
    assert value_of(composed_sft(f"{key}={value}", f"{section}.{company}"), key) == value
    (fault,) = sft_faults(f"{key}={value}")
    assert f"{section}.prompt_template: must end with {{{value}}}" in fault


@pytest.mark.parametrize(("key", "good", "bad"), [(key, *pair) for key, pair in DEFAULT_AND_REFUSED.items()])
def test_a_key_whose_machinery_is_not_here_takes_its_default_alone(key: str, good: str, bad: str) -> None:
    sft_config(f"{key}={good}")
    (fault,) = sft_faults(f"{key}={bad}")
    assert fault.startswith(f"command line: `{key}={bad}`: {SFT.aliases.get(key, key)}: ")
    assert ": set " in fault or ": merge " in fault


@pytest.mark.parametrize("key", sorted(WITHOUT_MEANING))
def test_a_key_without_a_meaning_is_accepted_and_named(key: str) -> None:
    result = composed_sft(f"++{key}=null")
    assert result.ignored == (f"{key}: {SFT.ignored[key]}",)
    assert result.config == sft_config()


@pytest.mark.parametrize("override", ADDED)
def test_what_guides_and_tests_add_is_accepted(override: str) -> None:
    sft_config(override)


def test_the_tables_hold_no_key_twice() -> None:
    tables = [*all_keys(SftConfig), *SFT.ignored, *SFT.aliases, *SFT.renamed]
    assert len(tables) == len(set(tables))
    assert all_keys(SftConfig).keys() >= SFT.unlisted | set(SFT.aliases.values())
    assert not SFT.unlisted & set(nemo_keys(NEMO_SFT_YAML))


def test_every_key_that_nemo_has_is_there_or_can_be_added() -> None:
    """What is neither in NeMo-Aligner's file nor added to it by its users is our own."""
    ours = all_keys(SftConfig).keys() - set(nemo_keys(NEMO_SFT_YAML)) - SFT.unlisted
    names = ["packing", "tokens_per_micro_batch", "on_overlong", "format", "chat_template", "trained_turns"]
    assert ours == {
        *(f"model.data.{name}" for name in names),
        "model.attention_backend",
        "model.loss_average",
        "model.fsdp_cpu_offload",
        "model.prefix_sharing",
        "model.torch_compile",
        "trainer.deterministic",
        "trainer.hang_timeout",
        f"{VALIDATION}.concat_sampling_probabilities",  # refused there
    }


@pytest.mark.parametrize(
    "override",
    [
        "pretrained_checkpoint.restore_from_path=/m",
        "model.data.data_prefix={train: [a]}",
        "++model.data.data_prefix={train: [a], validation: [b]}",
        "model.data.seq_length=3",
        "+model.data.append_eod=true",
    ],
)
def test_a_name_of_dpo_says_what_sft_calls_it(override: str) -> None:
    (fault,) = sft_faults(override)
    assert fault.startswith(f"command line: `{override}`: {override.partition('=')[0].lstrip('+')}: SFT ")


@pytest.mark.parametrize("key", ["model.dpo.ref_policy_kl_penalty", "model.dpo.reference_cache", "model.data.pairs"])
def test_what_dpo_alone_has_is_unknown(key: str) -> None:
    (fault,) = sft_faults(f"{key}=1")
    assert f"unknown key {key!r}" in fault
