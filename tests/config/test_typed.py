"""Values of the wrong type, outside their range, or of a later version: the words for each."""

import pytest

from tests.config.composing import config, faults, sft_faults


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
        ("trainer.num_nodes=0", "must be 1 or more, got 0"),
        ("trainer.num_nodes=auto", "expected a whole number, got 'auto'"),
        ("trainer.devices=0", "must be 1 or more, got 0"),
        ("trainer.devices=-2", "must be 1 or more, got -2"),
        ("trainer.devices=two", "unknown value 'two'. Known: auto"),
        ("trainer.devices=[0,0]", "expected different device indices, got [0, 0]"),
        ("trainer.devices=[0,-1]", "expected different device indices, got [0, -1]"),
        ("trainer.devices=[]", "expected different device indices, got []"),
        ("trainer.hang_timeout=1", "must be 5 or more, got 1"),
        ("trainer.hang_timeout=null", "expected a number, got None"),
        ("model.tensor_model_parallel_size=0", "must be 1 or more, got 0"),
        ("model.context_parallel_size=0", "must be 1 or more, got 0"),
        ("model.expert_model_parallel_size=-1", "must be 1 or more, got -1"),
        ("model.sequence_parallel=2", "expected true or false, got 2"),
        ("model.fsdp_sharding_strategy=grad", "unknown value 'grad'. Known: auto, full, hybrid, replicate"),
        ("model.fsdp_sharding_strategy=hybrd", "unknown value 'hybrd'. Did you mean 'hybrid'? Known: auto, full"),
        ("model.fsdp_cpu_offload=cpu", "expected true or false, got 'cpu'"),
        ("model.torch_compile=max", "expected true or false, got 'max'"),
        ("pretrained_checkpoint.restore_from_path=", "is empty"),
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
        "trainer.max_time=00:03:30:00",
        "exp_manager.max_time_per_run=00:03:30:00",
        "exp_manager.resume_from_checkpoint=/x",
        "exp_manager.create_mlflow_logger=true",
        "model.peft.peft_scheme=lora",
        "model.peft.restore_from_path=/x",
        "model.activations_checkpoint_num_layers=1",
        "model.data.apply_ftfy=true",
    ],
)
def test_what_comes_later_is_refused_with_a_way_out(override: str) -> None:
    (fault,) = faults(override)
    reason, _, way_out = fault.partition(" not in this version: ")
    assert override.partition("=")[0] in reason
    assert len(way_out) > 5


@pytest.mark.parametrize("size", [0, 2])
def test_stages_of_layers_are_refused_with_what_shares_the_model_instead(size: int) -> None:
    override = f"model.pipeline_model_parallel_size={size}"
    for (fault,) in (faults(override), sft_faults(override)):
        assert fault.startswith(
            f"command line: `{override}`: model.pipeline_model_parallel_size: layers are not spread"
        )
        assert fault.endswith(": set it to 1; FSDP and tensor parallelism shard the model")


@pytest.mark.parametrize(
    "override",
    [
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
