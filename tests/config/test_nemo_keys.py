"""Every key of NeMo-Aligner's gpt_dpo.yaml, and those that its guides add, has the verdict that was decided for it."""

from collections.abc import Iterator

import pytest
from omegaconf import OmegaConf

from dpolish.config import compose
from dpolish.config.keys import all_keys
from dpolish.config.nemo_keys import DPO
from dpolish.errors import ConfigError
from tests.config.composing import NEMO_YAML, value_of

# fmt: off
ANOTHER_VALUE = {  # a value other than the default, where one is accepted
    "trainer.num_nodes": 8,
    "trainer.devices": 8,
    "trainer.accelerator": "cpu",
    "trainer.precision": "bf16-mixed",
    "trainer.dpo.max_epochs": 3,
    "trainer.dpo.max_steps": 7,
    "trainer.dpo.val_check_interval": 1,
    "trainer.dpo.save_interval": 0,
    "trainer.dpo.limit_train_batches": 5,
    "trainer.dpo.limit_val_batches": 0.5,
    "trainer.dpo.gradient_clip_val": 0.0,
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
    "exp_manager.checkpoint_callback_params.save_top_k": 5,
    "exp_manager.checkpoint_callback_params.mode": "max",
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": True,
    "exp_manager.checkpoint_callback_params.filename": "{step}",
    "pretrained_checkpoint.restore_from_path": "/m/gpt.nemo",
    "model.micro_batch_size": 2,
    "model.global_batch_size": 512,
    "model.dpo.log_prob_forward_micro_batch_size": 8,
    "model.dpo.ref_policy_kl_penalty": 0.1,
    "model.dpo.preference_average_log_probs": True,
    "model.dpo.sft_average_log_probs": True,
    "model.dpo.gt_reward_scale": 2.0,
    "model.dpo.preference_loss": "rpo_fwd_kl",
    "model.dpo.preference_loss_weight": 0.5,
    "model.dpo.sft_loss_weight": 0.5,
    "model.seed": 7,
    "model.peft.lora_tuning.target_modules": ["all"],
    "model.peft.lora_tuning.adapter_dim": 8,
    "model.peft.lora_tuning.adapter_dropout": 0.1,
    "model.peft.lora_tuning.column_init_method": "normal",
    "model.peft.lora_tuning.row_init_method": "xavier",
    "model.peft.lora_tuning.layer_selection": [1, 12],
    "model.optim.name": "adamw",
    "model.optim.lr": 1e-5,
    "model.optim.weight_decay": 0.0,
    "model.optim.betas": [0.9, 0.999],
    "model.optim.sched.name": "WarmupAnnealing",
    "model.optim.sched.warmup_steps": 0,
    "model.optim.sched.constant_steps": None,
    "model.optim.sched.min_lr": 0.0,
    "model.data.data_impl": "chunked_jsonl",
    "model.data.splits_string": "980,10,10",
    "model.data.seq_length": 128,
    "model.data.pad_length_to_multiple_of": 8,
    "model.data.num_workers": 2,
    "model.data.eod_mask_loss": True,
    "model.data.data_prefix": ["a"],
    "model.data.default_chosen_reward": 2.0,
    "model.data.default_rejected_reward": -1.0,
}
ADDED_WITH_A_MEANING = {  # what the file leaves out, and what it has in other ways to say it
    "trainer.devices": -1,
    "trainer.hang_timeout": 30.0,
    "model.tensor_model_parallel_size": 2,
    "model.context_parallel_size": 2,
    "model.expert_model_parallel_size": 4,
    "model.sequence_parallel": True,
    "model.fsdp_sharding_strategy": "full",
    "model.fsdp_cpu_offload": True,
    "model.torch_compile": True,
    "model.activations_checkpoint_granularity": "full",
}
# fmt: on
ONLY_THE_DEFAULT = {
    "trainer.max_time",
    "exp_manager.max_time_per_run",
    "exp_manager.resume_from_checkpoint",
    "model.peft.peft_scheme",
    "model.peft.restore_from_path",
    "model.peft.lora_tuning.weight_tying",
}
WITHOUT_MEANING = {
    "defaults",
    "trainer.logger",
    "trainer.enable_checkpointing",
    "trainer.use_distributed_sampler",
    "trainer.max_epochs",
    "trainer.max_steps",
    "exp_manager.checkpoint_callback_params.always_save_nemo",
    "exp_manager.checkpoint_callback_params.model_parallel_size",
    "model.mcore_gpt",
    "model.megatron_amp_O2",
    "model.peft.restore_from_ckpt.checkpoint_dir",
    "model.peft.restore_from_ckpt.checkpoint_name",
    "model.peft.lora_tuning.position_embedding_strategy",
    "model.optim.bucket_cap_mb",
    "model.optim.overlap_grad_sync",
    "model.optim.contiguous_grad_buffer",
    "model.data.skip_warmup",
    "model.data.reset_position_ids",
    "model.data.reset_attention_mask",
    "model.data.index_mapping_dir",
    "model.overwrite_base_config.data.data_prefix",
}
ADDED = [
    "++model.data.append_eod=True",
    "++model.data.apply_ftfy=False",
    "++model.data.validation_drop_last=False",
    "++model.data.n_chunks=4",
    "++model.data.n_examples_per_chunk=4",
    "++model.data.train_ds.packed_sequence=True",
    "++model.data.train_ds.packed_sequence_return_cu_seqlen=True",
    "++model.encoder_seq_length=4096",
    "++model.transformer_engine=True",
    "++model.dist_ckpt_load_strictness=log_all",
    "++model.tensor_model_parallel_size=2",
    "+model.sequence_parallel=True",
    "+model.fsdp_sharding_strategy=full",
    "++trainer.hang_timeout=60",
    "++model.pipeline_model_parallel_size=1",
    "++model.context_parallel_size=2",
    "++model.expert_model_parallel_size=2",
    "++model.activations_checkpoint_granularity=full",
    "++model.activations_checkpoint_method=uniform",
    "++model.activations_checkpoint_num_layers=null",
    "++model.override_vocab_size=null",
    "++model.tokenizer.library=megatron",
    "++model.tokenizer.tokenizer_model=/t",
    "++dpo.default_chosen_reward=1",
    "+dpo.default_rejected_reward=0",
    "+tokenizer_path=/t",
    "+output_dir=/o",
    "+pack_sizes=[4096]",
    "+tokenizer_type=huggingface",
    "+packing_algorithm=first_fit_shuffle",
    "++exp_manager.create_tensorboard_logger=true",
    "++exp_manager.create_mlflow_logger=false",
    "++exp_manager.mlflow_logger_kwargs.tracking_uri=x",
    "++exp_manager.mlflow_logger_kwargs={experiment_name: x}",
    "++exp_manager.wandb_logger_kwargs.entity=e",
    "++exp_manager.wandb_logger_kwargs.group=g",
    "++exp_manager.wandb_logger_kwargs.tags=[t]",
    "++exp_manager.wandb_logger_kwargs.id=i",
    "++exp_manager.wandb_logger_kwargs.resume=allow",
    'model.data.chat_prompt_tokens={end_of_turn: "\n"}',
    "hydra.run.dir=/x",
    "hydra/job_logging=disabled",
]


def nemo_keys() -> Iterator[str]:
    def leaves(tree: object, prefix: str) -> Iterator[str]:
        if isinstance(tree, dict):
            for name, inner in tree.items():
                yield from leaves(inner, f"{prefix}.{name}")
        else:
            yield prefix[1:]

    return leaves(OmegaConf.to_container(OmegaConf.load(NEMO_YAML)), "")


def test_every_key_of_gpt_dpo_yaml_has_one_verdict() -> None:
    verdicts = [*ANOTHER_VALUE, *ONLY_THE_DEFAULT, *WITHOUT_MEANING, "precision"]
    assert sorted(verdicts) == sorted(nemo_keys())


@pytest.mark.parametrize(("key", "value"), [*ANOTHER_VALUE.items(), *ADDED_WITH_A_MEANING.items()])
def test_a_key_with_a_meaning_takes_its_value(key: str, value: object) -> None:
    text = {str: f"'{value}'", type(None): "null"}.get(type(value), str(value))
    result = compose(None, [f"{key}={text}"], environ={})
    found = value_of(result, key)
    assert (found, type(found)) == (value, type(value))
    assert value != all_keys()[key].default
    assert not result.ignored


@pytest.mark.parametrize("key", sorted(ONLY_THE_DEFAULT))
def test_a_key_whose_machinery_is_not_here_takes_its_default_alone(key: str) -> None:
    default, other = {
        "model.peft.peft_scheme": ("none", "lora"),
        "model.peft.lora_tuning.weight_tying": ("false", "true"),
    }.get(key, ("null", "x"))
    compose(None, [f"{key}={default}"], environ={})
    with pytest.raises(ConfigError, match=key):
        compose(None, [f"{key}={other}"], environ={})


@pytest.mark.parametrize("key", sorted(WITHOUT_MEANING))
def test_a_key_without_a_meaning_is_accepted_and_named(key: str) -> None:
    result = compose(None, [f"++{key}=null"], environ={})
    assert result.ignored == (f"{key}: {DPO.ignored[key]}",)
    assert result.config == compose(environ={}).config


@pytest.mark.parametrize("override", ADDED)
def test_what_guides_and_tests_add_is_accepted(override: str) -> None:
    compose(None, [override], environ={})


def test_the_tables_hold_no_key_twice() -> None:
    tables = [*all_keys(), *DPO.ignored, *DPO.aliases, *DPO.renamed]
    assert len(tables) == len(set(tables))
    assert all_keys().keys() >= DPO.unlisted
    assert not DPO.unlisted & set(nemo_keys())
    assert all_keys().keys() >= set(DPO.aliases.values())


def test_an_open_group_covers_what_is_below_it_and_nothing_beside_it() -> None:
    assert (
        DPO.reason_ignored("model.tokenizer.library")
        == DPO.reason_ignored("model.tokenizer")
        == DPO.ignored["model.tokenizer.*"]
    )
    assert DPO.reason_ignored("model.tokenizers.library") is None
    assert DPO.reason_ignored("trainer.logger.x") is None
