"""What else NeMo wants in a `model_config.yaml`: how it runs a model, nothing of what the model is.

The values are those that NeMo's own converters write, for a run on any hardware: no fused kernel that needs a size, no
overlap of communication, no recomputation. Whoever trains with the file sets what suits the machine.
"""

from collections.abc import Mapping

_ARCHITECTURE_AS_USUAL: Mapping[str, object] = {
    "use_scaled_init_method": True,
    "ffn_dropout": 0.0,
    "apply_query_key_layer_scaling": False,
    "do_layer_norm_weight_decay": False,
    "pre_process": True,
    "post_process": True,
    "persist_layer_norm": True,
    "headscale": False,
    "transformer_block_type": "pre_ln",
    "normalize_attention_scores": True,
    "attention_type": "multihead",
}
_PRECISION: Mapping[str, object] = {
    "native_amp_init_scale": 4294967296,
    "native_amp_growth_interval": 1000,
    "hysteresis": 2,
    "fp32_residual_connection": False,
    "fp16_lm_cross_entropy": False,
    "megatron_amp_O2": False,
    "grad_allreduce_chunk_size_mb": 125,
    "fp8": False,
    "fp8_e4m3": False,
    "fp8_hybrid": True,
    "fp8_margin": 0,
    "fp8_interval": 1,
    "fp8_amax_history_len": 1024,
    "fp8_amax_compute_algo": "max",
    "reduce_amax": True,
}
_RUNNING: Mapping[str, object] = {
    "micro_batch_size": 1,
    "global_batch_size": 8,
    "rampup_batch_size": None,
    "virtual_pipeline_model_parallel_size": None,
    "overlap_p2p_comm": False,
    "batch_p2p_comm": True,
    "grad_div_ar_fusion": True,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": True,
    "get_attention_mask_from_fusion": True,
    "apply_rope_fusion": False,
    "seed": 1234,
    "resume_from_checkpoint": None,
    "use_cpu_initialization": False,
    "onnx_safe": False,
    "apex_transformer_log_level": 30,
    "gradient_as_bucket_view": True,
    "sync_batch_comm": False,
    "activations_checkpoint_granularity": None,
    "activations_checkpoint_method": None,
    "activations_checkpoint_num_layers": None,
    "num_micro_batches_with_partial_activation_checkpoints": None,
    "activations_checkpoint_layers_per_pipeline": None,
    "sequence_parallel": False,
    "use_emha": False,
    "ub_tp_comm_overlap": False,
    "use_flash_attention": False,
    "fsdp": False,
}
DATA: Mapping[str, object] = {
    "index_mapping_dir": None,
    "data_impl": "mmap",
    "splits_string": "900,50,50",
    "skip_warmup": True,
    "num_workers": 2,
    "dataloader_type": "single",
    "reset_position_ids": False,
    "reset_attention_mask": False,
    "eod_mask_loss": False,
    "validation_drop_last": True,
    "no_seqlen_plus_one_input_tokens": False,
    "pad_samples_to_global_batch_size": False,
    "shuffle_documents": True,
}
"""The block of that name, but for `seq_length`."""
_BLOCKS: Mapping[str, object] = {
    "tokenizer": {
        "library": None,
        "type": None,
        "model": None,
        "vocab_file": None,
        "merge_file": None,
        "delimiter": None,
        "sentencepiece_legacy": False,
    },
    "nsys_profile": {"enabled": False, "start_step": 10, "end_step": 10, "ranks": [0], "gen_shape": False},
    "optim": {
        "name": "fused_adam",
        "lr": 2.0e-4,
        "weight_decay": 0.01,
        "betas": [0.9, 0.98],
        "sched": {"name": "CosineAnnealing", "warmup_steps": 500, "constant_steps": 50000, "min_lr": 2.0e-5},
    },
}

DEFAULTS: Mapping[str, object] = {
    "mcore_gpt": True,
    "transformer_engine": True,
    **_ARCHITECTURE_AS_USUAL,
    **_PRECISION,
    **_RUNNING,
    **_BLOCKS,
    "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
}
"""For an mcore layout."""

LEGACY_DEFAULTS: Mapping[str, object] = {"mcore_gpt": False, "transformer_engine": False}
"""What the legacy layout has otherwise: with `transformer_engine` its tensors would have other names."""
