"""NeMo-Aligner's keys that are not fields of the schema: without a meaning here, under another name, or renamed.

A key that is neither here nor in its tree is an error, also when it is written with `++`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_LIGHTNING = "PyTorch Lightning's own; nothing here needs it"
_MIRROR = "a copy of trainer.{0}; that one counts"
_MEGATRON = "Megatron's own; nothing here needs it"
_APEX = "a detail of Apex's optimizer; PyTorch's needs none"
_NEMO_CHECKPOINT = "NeMo's own checkpoints of adapters are not read"
_PACKED_OFFLINE = "packing is done on the fly; model.data.packing turns it on and off"
_CHUNKED = "files are read row by row; there are no chunks"
_TOKENIZER = "the tokenizer comes with the model"
_INDEX = "there are no index files"
_ONE_MODEL = "the model is saved once, at the end; save_nemo_on_train_end writes it as .nemo too"


@dataclass(frozen=True, slots=True)
class NemoKeys:
    """What one of NeMo-Aligner's files, its guides and its code say besides the fields of our tree."""

    file: str
    """The file, without `.yaml`."""
    ignored: Mapping[str, str]
    """Key to the reason why it has no meaning here. `.*` covers everything below."""
    aliases: Mapping[str, str]
    """Other places where NeMo-Aligner or its tutorial has a key, to the key."""
    renamed: Mapping[str, str]
    """Dead names, and those of another verb: refused with the right ones."""
    unlisted: frozenset[str]
    """Fields that NeMo-Aligner knows and the file leaves out: there they are added with `+`, so `+` works here."""

    def reason_ignored(self, key: str) -> str | None:
        """Why a key has no meaning here; None where it has one, or is unknown."""
        if key in self.ignored:
            return self.ignored[key]
        parts = key.split(".")
        groups = (".".join([*parts[:end], "*"]) for end in range(1, len(parts) + 1))
        return next((self.ignored[group] for group in groups if group in self.ignored), None)


_IGNORED_BY_ALL = {
    "defaults": "the list can name no other file here; every value has its default already",
    "trainer.logger": _LIGHTNING,
    "trainer.enable_checkpointing": _LIGHTNING,
    "trainer.use_distributed_sampler": _LIGHTNING,
    "exp_manager.checkpoint_callback_params.always_save_nemo": _ONE_MODEL,
    "exp_manager.checkpoint_callback_params.model_parallel_size": "checkpoints do not depend on the parallel layout",
    "exp_manager.checkpoint_callback_params.save_best_model": "save_top_k and monitor say what is kept",
    "model.mcore_gpt": "the model's architecture comes with it",
    "model.megatron_amp_O2": "trainer.precision=bf16 keeps float32 master weights anyway",
    "model.peft.restore_from_ckpt.checkpoint_dir": _NEMO_CHECKPOINT,
    "model.peft.restore_from_ckpt.checkpoint_name": _NEMO_CHECKPOINT,
    "model.peft.lora_tuning.position_embedding_strategy": "it belongs to weight_tying, which is refused",
    "model.optim.bucket_cap_mb": _APEX,
    "model.optim.overlap_grad_sync": _APEX,
    "model.optim.contiguous_grad_buffer": _APEX,
    "model.data.train_ds.packed_sequence": _PACKED_OFFLINE,
    "model.data.train_ds.packed_sequence_return_cu_seqlen": _PACKED_OFFLINE,
    "model.transformer_engine": "kernels are PyTorch's; model.attention_backend chooses",
    "model.dist_ckpt_load_strictness": "a weight that is missing or left over is always an error",
    "model.activations_checkpoint_method": "layers are recomputed one by one",
    "model.activations_checkpoint_layers_per_pipeline": "there are no pipeline stages",
    "model.sync_batch_comm": _MEGATRON,
    "model.gradient_as_bucket_view": _MEGATRON,
    "model.save_nemo_on_validation_end": _ONE_MODEL,
    "tokenizer_path": _PACKED_OFFLINE,
    "tokenizer_type": _PACKED_OFFLINE,
    "output_dir": _PACKED_OFFLINE,
    "pack_sizes": _PACKED_OFFLINE,
    "packing_algorithm": _PACKED_OFFLINE,
    # open groups: whatever is below them
    "model.tokenizer.*": _TOKENIZER,
    "model.ub_tp_comm_overlap_cfg.*": _MEGATRON,
    "exp_manager.mlflow_logger_kwargs.*": "MLflow is not in this version",
    "hydra.*": "the run directory is exp_manager.explicit_log_dir, and dpolish writes its own log",
}
_IGNORED_BY_DPO = {
    "trainer.max_epochs": _MIRROR.format("dpo.max_epochs"),
    "trainer.max_steps": _MIRROR.format("dpo.max_steps"),
    "model.data.skip_warmup": "there is no memory map to warm up",
    "model.data.reset_position_ids": "packing always restarts positions",
    "model.data.reset_attention_mask": "packing never lets a row see another",
    "model.data.index_mapping_dir": _INDEX,
    "model.overwrite_base_config.data.data_prefix": "the model's own configuration holds no data",
    "model.data.validation_drop_last": "validation is the exact mean over all rows",
    "model.data.n_chunks": _CHUNKED,
    "model.data.n_examples_per_chunk": _CHUNKED,
    "model.use_flash_attention": "model.attention_backend chooses the kernel",
    "model.answer_only_loss": "only answers are scored",
}
_IGNORED_BY_SFT = {
    "trainer.max_epochs": _MIRROR.format("sft.max_epochs"),
    "trainer.max_steps": _MIRROR.format("sft.max_steps"),
    "model.steerlm2.forward_micro_batch_size": "SteerLM is not trained here",
    "model.steerlm2.micro_batch_size": "SteerLM is not trained here",
    "model.data.dataloader_type": "there is one loader",
    "model.data.validation_ds.packed_sequence": _PACKED_OFFLINE,
    "model.data.validation_ds.packed_sequence_return_cu_seqlen": _PACKED_OFFLINE,
    "model.data.validation_ds.output_original_text": "nothing here asks for the rows' own text",
    **{
        f"model.data.{rows}.{name}": why
        for rows in ("train_ds", "validation_ds")
        for name, why in {
            "memmap_workers": "there is no memory map to build",
            "add_sep": "there is no separator between prompt and answer but what prompt_template says",
            "index_mapping_dir": _INDEX,
            "hf_dataset": "files and data sets are told apart by their path",
        }.items()
    },
}

_UNLISTED_BY_ALL = frozenset(
    {
        "exp_manager.create_mlflow_logger",
        "exp_manager.create_tensorboard_logger",
        *(f"exp_manager.wandb_logger_kwargs.{name}" for name in ("entity", "group", "id", "resume", "tags")),
        *(f"model.{name}_parallel_size" for name in ("context", "expert_model")),
        "model.fsdp_sharding_strategy",
        "model.optim.eps",
        "model.override_vocab_size",
        *(f"model.optim.sched.{name}_ratio" for name in ("constant", "hold", "warmup")),
        *(f"model.optim.sched.{name}" for name in ("d_model", "hold_steps", "max_steps", "power")),
    }
)

DPO = NemoKeys(
    file="gpt_dpo",
    ignored={**_IGNORED_BY_ALL, **_IGNORED_BY_DPO},
    aliases={
        "precision": "trainer.precision",
        "dpo.default_chosen_reward": "model.data.default_chosen_reward",
        "dpo.default_rejected_reward": "model.data.default_rejected_reward",
        "model.dpo.default_chosen_reward": "model.data.default_chosen_reward",
        "model.dpo.default_rejected_reward": "model.data.default_rejected_reward",
    },
    renamed={
        "model.dpo.average_log_probs": "the name is dead: it is now model.dpo.preference_average_log_probs for the "
        "preference loss and model.dpo.sft_average_log_probs for the SFT loss",
        "trainer.sft": "DPO has trainer.dpo",
        "model.restore_from_path": "DPO names its model with pretrained_checkpoint.restore_from_path, or with --model",
        "model.data.train_ds.file_path": "DPO names its files with model.data.data_prefix={train: [...], "
        "validation: [...]}, or with --train and --validation",
    },
    unlisted=_UNLISTED_BY_ALL
    | {
        "model.activations_checkpoint_granularity",
        "model.activations_checkpoint_num_layers",
        *(f"model.{name}_dropout" for name in ("attention", "ffn", "hidden")),
        *(f"model.{name}_parallel_size" for name in ("pipeline_model", "tensor_model")),
        "model.data.append_eod",
        "model.data.apply_ftfy",
        "model.encoder_seq_length",
        "model.seq_len_interpolation_factor",
        "model.sequence_parallel",
        *(f"model.data.chat_prompt_tokens.{name}_start" for name in ("label", "system_turn", "turn")),
        *(f"model.data.chat_prompt_tokens.end_of_{name}" for name in ("name", "turn")),
    },
)

SFT = NemoKeys(
    file="gpt_sft",
    ignored={**_IGNORED_BY_ALL, **_IGNORED_BY_SFT},
    aliases={
        "precision": "trainer.precision",
        "model.resume_from_checkpoint": "exp_manager.resume_from_checkpoint",
    },
    renamed={
        "trainer.dpo": "SFT has trainer.sft",
        "model.dpo": "SFT has no preference loss",
        "pretrained_checkpoint.restore_from_path": "SFT names its model with model.restore_from_path, or with --model",
        "model.data.data_prefix": "SFT names its files with model.data.train_ds.file_path and "
        "model.data.validation_ds.file_path, or with --train and --validation",
        "model.data.seq_length": "SFT has model.data.train_ds.max_seq_length",
        "model.data.append_eod": "SFT has model.data.train_ds.add_eos",
    },
    unlisted=_UNLISTED_BY_ALL
    | {
        "exp_manager.max_time_per_run",
        "exp_manager.resume_from_checkpoint",
        "model.data.train_ds.concat_sampling_probabilities",
        *(f"model.data.{rows}.file_names" for rows in ("train_ds", "validation_ds")),
    },
)
