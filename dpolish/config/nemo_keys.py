"""NeMo-Aligner's keys that are not fields of the schema: without a meaning here, under another name, or renamed.

A key that is neither here nor in the schema is an error, also when it is written with `++`.
"""

from collections.abc import Mapping

_LIGHTNING = "PyTorch Lightning's own; nothing here needs it"
_MIRROR = "a copy of trainer.dpo.{0}; that one counts"
_MEGATRON = "Megatron's own; nothing here needs it"
_APEX = "a detail of Apex's optimizer; PyTorch's needs none"
_NEMO_CHECKPOINT = "NeMo's own checkpoints of adapters are not read"
_PACKED_OFFLINE = "packing is done on the fly; model.data.packing turns it on and off"
_CHUNKED = "files are read row by row; there are no chunks"
_TOKENIZER = "the tokenizer comes with the model"

IGNORED: Mapping[str, str] = {
    # gpt_dpo.yaml
    "defaults": "the list can name no other file here; every value has its default already",
    "trainer.logger": _LIGHTNING,
    "trainer.enable_checkpointing": _LIGHTNING,
    "trainer.use_distributed_sampler": _LIGHTNING,
    "trainer.max_epochs": _MIRROR.format("max_epochs"),
    "trainer.max_steps": _MIRROR.format("max_steps"),
    "exp_manager.checkpoint_callback_params.always_save_nemo": "the model is saved as a Hugging Face folder",
    "exp_manager.checkpoint_callback_params.model_parallel_size": "checkpoints do not depend on the parallel layout",
    "model.mcore_gpt": "the model's architecture comes with it",
    "model.megatron_amp_O2": "trainer.precision=bf16 keeps float32 master weights anyway",
    "model.peft.restore_from_ckpt.checkpoint_dir": _NEMO_CHECKPOINT,
    "model.peft.restore_from_ckpt.checkpoint_name": _NEMO_CHECKPOINT,
    "model.peft.lora_tuning.position_embedding_strategy": "it belongs to weight_tying, which is refused",
    "model.optim.bucket_cap_mb": _APEX,
    "model.optim.overlap_grad_sync": _APEX,
    "model.optim.contiguous_grad_buffer": _APEX,
    "model.data.skip_warmup": "there is no memory map to warm up",
    "model.data.reset_position_ids": "packing always restarts positions",
    "model.data.reset_attention_mask": "packing never lets a row see another",
    "model.data.index_mapping_dir": "there are no index files",
    "model.overwrite_base_config.data.data_prefix": "the model's own configuration holds no data",
    # what NeMo-Aligner's guides, tests and code add to it
    "model.data.validation_drop_last": "validation is the exact mean over all rows",
    "model.data.n_chunks": _CHUNKED,
    "model.data.n_examples_per_chunk": _CHUNKED,
    "model.data.train_ds.packed_sequence": _PACKED_OFFLINE,
    "model.data.train_ds.packed_sequence_return_cu_seqlen": _PACKED_OFFLINE,
    "model.transformer_engine": "kernels are PyTorch's; model.attention_backend chooses",
    "model.use_flash_attention": "model.attention_backend chooses the kernel",
    "model.dist_ckpt_load_strictness": "a weight that is missing or left over is always an error",
    "model.answer_only_loss": "only answers are scored",
    "model.activations_checkpoint_method": "layers are recomputed one by one",
    "model.activations_checkpoint_layers_per_pipeline": "there are no pipeline stages",
    "model.sync_batch_comm": _MEGATRON,
    "model.gradient_as_bucket_view": _MEGATRON,
    "model.save_nemo_on_validation_end": "the model is saved as a Hugging Face folder",
    "exp_manager.checkpoint_callback_params.save_best_model": "save_top_k and monitor say what is kept",
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
"""Key to the reason why it has no meaning here. `.*` covers everything below."""

ALIASES: Mapping[str, str] = {
    "precision": "trainer.precision",
    "dpo.default_chosen_reward": "model.data.default_chosen_reward",
    "dpo.default_rejected_reward": "model.data.default_rejected_reward",
    "model.dpo.default_chosen_reward": "model.data.default_chosen_reward",
    "model.dpo.default_rejected_reward": "model.data.default_rejected_reward",
}
"""Other places where NeMo-Aligner or its tutorial has a key, to the key."""

RENAMED: Mapping[str, str] = {
    "model.dpo.average_log_probs": "it is now model.dpo.preference_average_log_probs for the preference loss and "
    "model.dpo.sft_average_log_probs for the SFT loss",
}
"""Dead names, refused with the new ones."""

UNLISTED = frozenset(
    {
        "exp_manager.create_mlflow_logger",
        "exp_manager.create_tensorboard_logger",
        *(f"exp_manager.wandb_logger_kwargs.{name}" for name in ("entity", "group", "id", "resume", "tags")),
        "model.activations_checkpoint_granularity",
        "model.activations_checkpoint_num_layers",
        *(f"model.{name}_dropout" for name in ("attention", "ffn", "hidden")),
        *(f"model.{name}_parallel_size" for name in ("context", "expert_model", "pipeline_model", "tensor_model")),
        "model.data.append_eod",
        "model.data.apply_ftfy",
        "model.encoder_seq_length",
        "model.optim.eps",
        "model.override_vocab_size",
        "model.seq_len_interpolation_factor",
        "model.sequence_parallel",
        *(f"model.data.chat_prompt_tokens.{name}_start" for name in ("label", "system_turn", "turn")),
        *(f"model.data.chat_prompt_tokens.end_of_{name}" for name in ("name", "turn")),
        *(f"model.optim.sched.{name}_ratio" for name in ("constant", "hold", "warmup")),
        *(f"model.optim.sched.{name}" for name in ("d_model", "hold_steps", "max_steps", "power")),
    }
)
"""Fields that NeMo-Aligner knows and gpt_dpo.yaml leaves out: there they are added with `+`, so `+` works here."""


def reason_ignored(key: str) -> str | None:
    """Why a key has no meaning here; None where it has one, or is unknown."""
    if key in IGNORED:
        return IGNORED[key]
    parts = key.split(".")
    groups = (".".join([*parts[:end], "*"]) for end in range(1, len(parts) + 1))
    return next((IGNORED[group] for group in groups if group in IGNORED), None)
