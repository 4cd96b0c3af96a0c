"""The Python face: what a run leaves, what it reuses, and what `plan` says of it before."""

import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import dpolish
from dpolish.api import RunResult
from dpolish.data.loader import Sources, trained_rows
from dpolish.errors import ConfigError, RunError
from dpolish.run_directory import claim, run_directory
from tests import tiny
from tests.tiny import Setup

CLOCK = {"step_time", "tokens_per_second", "pairs_per_second", "validation_step_time"}


def test_verbs_are_functions_whatever_was_imported_before() -> None:
    """No room may bear a verb's name: importing it would put the module in the verb's place."""
    rooms = {path.stem for path in Path(dpolish.__file__).parent.iterdir()}
    assert not rooms & set(dpolish.__all__)
    assert all(callable(getattr(dpolish, verb)) for verb in ("compose", "plan", "train"))


def test_the_package_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        dpolish.trian  # noqa: B018


# --- what a run leaves ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunResult]:
    """A run with a umask of its own, so that modes can be told apart."""
    before = os.umask(0o027)
    ignored = ["model.mcore_gpt=true", "exp_manager.resume_if_exists=false"]
    composed = setup.composed(tmp_path_factory.mktemp("api") / "run", *ignored)
    yield dpolish.train(composed, argv=["dpolish", "dpo", "hf_token=x"], say=lambda _: None, sinks=lambda _: ())
    os.umask(before)


def test_the_run_directory(finished: RunResult) -> None:
    left = {str(path.relative_to(finished.directory)) for path in finished.directory.rglob("*") if path.is_file()}
    model = {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    expected = {f"model/{name}" for name in model | tokenizer}
    assert left == {"config.yaml", "environment.json", "metrics.jsonl", *expected}
    assert finished.model == finished.directory / "model"


def test_the_umask_alone_decides_who_may_read(finished: RunResult) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in finished.directory.rglob("*")}
    assert {name: mode for name, mode in modes.items() if mode != (0o750 if name == "model" else 0o640)} == {}


def test_the_result_is_what_the_files_say(finished: RunResult) -> None:
    lines = [json.loads(line) for line in (finished.directory / "metrics.jsonl").read_text().splitlines()]
    told = [{"step": record.step, "split": record.split, **record.metrics} for record in finished.records]
    assert told == lines
    assert [(line["step"], line["split"]) for line in lines] == [
        (1, "train"), (2, "train"), (2, "val"), (3, "train"), (4, "train"), (4, "val"), (5, "train"), (5, "val")
    ]  # fmt: skip
    assert [line["consumed_samples"] for line in lines if line["split"] == "train"] == [4, 8, 11, 15, 19]
    assert [line["epoch"] for line in lines if line["split"] == "train"] == [1, 1, 1, 2, 2]
    assert finished.num_reference_scored + finished.num_reference_cached == 16


def test_rewards_are_zero_at_the_first_step_and_a_tie_is_no_win(finished: RunResult) -> None:
    first = finished.records[0].metrics
    assert first["rewards_chosen_mean"] == pytest.approx(0, abs=1e-5)
    assert first["rewards_rejected_mean"] == pytest.approx(0, abs=1e-5)
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-5)


def test_the_model_loads_with_transformers_and_generates(finished: RunResult, setup: Setup) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished.model)
    tokenizer = AutoTokenizer.from_pretrained(finished.model)
    turns = [{"role": "user", "content": "which year was it"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert (
        inputs["input_ids"].tolist()
        == AutoTokenizer.from_pretrained(setup.model)
        .apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        .tolist()
    )
    out = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 4
    assert model.config._attn_implementation == "sdpa"
    assert 1e-3 < tiny.largest_difference(tiny.weights(finished.model), tiny.weights(setup.model)) < 1
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (setup.model, finished.model))
    assert after == before


def test_the_environment_knows_data_and_keys_without_meaning(finished: RunResult, setup: Setup) -> None:
    record = json.loads((finished.directory / "environment.json").read_text())
    assert record["data"] == [
        {"split": split, "path": str(path), "format": "native", "rows": rows, "sha256": _sha256(path)}
        for split, path, rows in (("train", setup.train, 11), ("validation", setup.validation, 5))
    ]
    assert record["command"] == ["dpolish", "dpo", "hf_token=***"]
    assert [key.partition(": ")[0] for key in record["ignored_keys"]] == ["model.mcore_gpt"]
    assert [key.partition(": ")[0] for key in record["keys_without_effect"]] == ["exp_manager.resume_if_exists"]
    assert record["packages"]["torch"] == torch.__version__


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_configuration_holds_what_was_derived(finished: RunResult) -> None:
    saved = yaml.safe_load((finished.directory / "config.yaml").read_text())
    assert saved["model"]["data"]["seq_length"] == tiny.LONGEST
    assert saved["model"]["data"]["tokens_per_micro_batch"] == 2 * tiny.LONGEST
    assert saved["trainer"]["precision"] == "32"
    assert saved["exp_manager"]["explicit_log_dir"] == str(finished.directory)


def test_the_configuration_makes_the_same_run(finished: RunResult, tmp_path: Path) -> None:
    composed = dpolish.compose(finished.directory / "config.yaml", output=str(tmp_path / "again"), environ={})
    again = dpolish.train(composed, say=lambda _: None, sinks=lambda _: ())
    for ours, theirs in zip(again.records, finished.records, strict=True):
        assert (ours.step, ours.split) == (theirs.step, theirs.split)
        comparable = {name: value for name, value in theirs.metrics.items() if name not in CLOCK}
        assert {name: ours.metrics[name] for name in comparable} == pytest.approx(comparable, rel=1e-6, abs=1e-6)
    assert tiny.largest_difference(tiny.weights(again.model), tiny.weights(finished.model)) < 1e-6


# --- what a run reuses ------------------------------------------------------------------------------------------------


def run_on(setup: Setup, tmp_path: Path, prefix: str, *overrides: str) -> RunResult:
    data = [*setup.overrides, f"model.data.data_prefix={prefix}", *overrides]
    composed = dpolish.compose(None, data, model=str(setup.model), output=str(tmp_path / "run"), environ={})
    return dpolish.train(composed, say=lambda _: None, sinks=lambda _: ())


UNRELATED = {
    "another β": ["model.dpo.ref_policy_kl_penalty=0.5"],
    "another loss": ["model.dpo.preference_loss=ipo", "model.dpo.preference_average_log_probs=true"],
    "another optimizer": ["model.optim.lr=1e-4", "model.optim.sched.min_lr=0", "model.optim.weight_decay=0"],
    "another length": ["trainer.dpo.max_epochs=1", "trainer.dpo.max_steps=2", "model.global_batch_size=7"],
    "another seed": ["model.seed=1"],
    "another packing": ["model.data.packing=false", "model.prefix_sharing=off", "model.micro_batch_size=4"],
}


@pytest.mark.parametrize("name", UNRELATED)
def test_what_moves_no_log_probability_scores_nothing_again(setup: Setup, tmp_path: Path, name: str) -> None:
    setup.run(tmp_path / "first")
    second = setup.run(tmp_path / "second", *UNRELATED[name])
    assert (second.num_reference_scored, second.num_reference_cached) == (0, 16)


RELATED = {
    "another precision": ["trainer.precision=bf16"],
    "another attention": ["model.attention_backend=dense"],
    "answers with an end": ["model.data.append_eod=true"],
    "no store": ["model.dpo.reference_cache=off"],
}


@pytest.mark.parametrize("name", RELATED)
def test_what_does_scores_all_again(setup: Setup, tmp_path: Path, name: str) -> None:
    setup.run(tmp_path / "first")
    assert setup.run(tmp_path / "second", *RELATED[name]).num_reference_scored == 16


def test_shuffled_and_changed_rows(setup: Setup, tmp_path: Path) -> None:
    setup.run(tmp_path / "first")
    rows = [*tiny.rows(11), *tiny.rows(5, seed=1)]  # what the first run trained and validated on
    random.Random(0).shuffle(rows)
    for number in (0, 3, 4, 9, 15):
        rows[number] = {**rows[number], "rejected_response": f" changed {number}"}
    second = run_on(setup, tmp_path, str(tiny.write_rows(tmp_path / "train.jsonl", rows)))
    assert (second.num_reference_scored, second.num_reference_cached) == (5, 11)


def test_another_model_has_a_reference_of_its_own(setup: Setup, tmp_path: Path) -> None:
    """The trained model as the next reference: nothing of the first one's is taken for it."""
    first = setup.run(tmp_path / "first")
    second = replace(setup, model=first.model).run(tmp_path / "second")
    assert second.num_reference_scored == 16
    assert second.records[0].metrics["rewards_all_mean"] == pytest.approx(0, abs=1e-5)


def test_a_store_of_ones_own(setup: Setup, tmp_path: Path, cache: Path) -> None:
    where = f"model.dpo.reference_cache={tmp_path / 'store'}"
    setup.run(tmp_path / "first", where)
    assert not cache.exists()
    assert len(list((tmp_path / "store").glob("*/*.safetensors"))) == 1
    assert setup.run(tmp_path / "second", where).num_reference_scored == 0


def test_a_damaged_store_is_told_and_mended(setup: Setup, tmp_path: Path, cache: Path) -> None:
    setup.run(tmp_path / "first")
    (segment,) = cache.glob("reference/*/*.safetensors")
    segment.write_bytes(segment.read_bytes()[:-4])
    said: list[str] = []
    second = dpolish.train(setup.composed(tmp_path / "second"), say=said.append, sinks=lambda _: ())
    assert second.num_reference_scored == 16
    assert any(f"{segment} is damaged" in line for line in said)
    assert setup.run(tmp_path / "third").num_reference_scored == 0


# --- plan -------------------------------------------------------------------------------------------------------------


def test_plan_trains_nothing_and_says_what_a_run_would_do(setup: Setup, tmp_path: Path, cache: Path) -> None:
    lines = dpolish.plan(setup.composed(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert not cache.exists()
    assert "reference: 16 rows to score, 0 cached" in lines
    numbers = dict(line.split("  ", 1) for line in lines if line.endswith(")") and "  " in line.strip())
    marked = {name.strip(): value.strip() for name, value in numbers.items()}
    assert marked["optimizer steps"] == "5  (derived)"
    assert marked["steps per epoch"] == "3  (derived)"
    assert marked["model.global_batch_size"] == "4  (given)"
    assert marked["model.dpo.ref_policy_kl_penalty"] == "0.2  (default)"
    assert marked["model.data.tokens_per_micro_batch"] == "256  (derived)"
    assert marked["validation"] == "2 batches every 2 steps and after the last  (derived)"
    assert "  1: 0.001, 2: 0.002, 3: 0.00174, 4: 0.0011, 5: 0.000464" in lines


def test_plan_knows_what_is_cached(setup: Setup, tmp_path: Path) -> None:
    setup.run(tmp_path / "first")
    assert "reference: 0 rows to score, 16 cached" in dpolish.plan(setup.composed(tmp_path / "second", "model.seed=5"))
    lines = dpolish.plan(setup.composed(tmp_path / "second", "model.dpo.reference_cache=off"))
    assert "reference: 16 rows to score, 0 cached" in lines


def test_plan_counts_the_tokens_of_a_step_that_the_file_cannot_fill(setup: Setup, tmp_path: Path) -> None:
    """A global batch of 64 has the 11 rows that there are."""
    lines = dpolish.plan(setup.composed(tmp_path / "run", "model.global_batch_size=64"))
    (total,) = (line.split()[1] for line in lines if line.startswith("train:   ") and "with shared prompts" in line)
    assert any(line.startswith(f"about {total} tokens per step") for line in lines)


def test_run_and_plan_tell_of_the_data_and_of_keys_that_do_nothing(setup: Setup, tmp_path: Path) -> None:
    composed = setup.composed(tmp_path / "run", "model.mcore_gpt=true", "trainer.dpo.save_interval=5")
    said: list[str] = []
    dpolish.train(composed, say=said.append, sinks=lambda _: ())
    for lines in (
        said,
        dpolish.plan(setup.composed(tmp_path / "other", "model.mcore_gpt=true", "trainer.dpo.save_interval=5")),
    ):
        assert f"train: {setup.train}: read as native, 11 rows" in lines
        assert "train: kept 11 rows of 11, dropped 0" in lines
        assert f"validation: {setup.validation}: read as native, 5 rows" in lines
        assert any(line.startswith("  model.mcore_gpt: ") for line in lines)
        assert any(line.startswith("  trainer.dpo.save_interval: ") for line in lines)
        assert any(line.startswith("note: model.global_batch_size=4") for line in lines)
    assert "reference: 16 rows scored, 0 from the cache" in said
    assert any("prompts computed once," in line for line in said)
    assert said[-1] == f"model: {tmp_path / 'run' / 'model'}"


# --- other data -------------------------------------------------------------------------------------------------------


def test_conversations_go_through_the_chat_template(setup: Setup, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": str(row["prompt"])}],
            "chosen_response": {"role": "assistant", "content": str(row["chosen_response"])},
            "rejected_response": {"role": "assistant", "content": str(row["rejected_response"])},
        }
        for row in tiny.rows(8)
    ]
    file = tiny.write_rows(tmp_path / "chat.jsonl", rows)
    result = run_on(setup, tmp_path, str(file), "trainer.dpo.max_steps=2")
    assert [record.split for record in result.records] == ["train", "train"]
    assert result.records[-1].metrics["consumed_samples"] == 8


def test_a_list_is_split_by_its_shares(setup: Setup, tmp_path: Path) -> None:
    result = run_on(setup, tmp_path, f"[{setup.train}]", "model.data.splits_string='7,4,0'", "trainer.dpo.max_steps=2")
    assert [record.metrics["consumed_samples"] for record in result.records if record.split == "train"] == [4, 7]
    assert [record.step for record in result.records if record.split == "val"] == [2]


def test_weighted_files_and_several_validation_sets(setup: Setup, tmp_path: Path) -> None:
    prefix = f"{{train: [0.75, {setup.train}, 0.25, {setup.validation}], validation: [{setup.validation}], "
    prefix += f"validation_more: [{setup.train}]}}"
    result = run_on(setup, tmp_path, prefix, "trainer.dpo.max_steps=-1", "trainer.dpo.max_epochs=1")
    train = [record for record in result.records if record.split == "train"]
    assert [record.metrics["consumed_samples"] for record in train] == [4, 8, 12, 16]
    drawn = trained_rows(1234, Sources((11, 5), (0.75, 0.25)), 4, 4, 4)
    assert result.num_reference_scored == len(drawn) + 16


def test_a_single_pair(setup: Setup, tmp_path: Path) -> None:
    file = tiny.write_rows(tmp_path / "one.jsonl", tiny.rows(2)[1:])
    result = run_on(setup, tmp_path, f"{{train: [{file}], validation: [{file}]}}")
    assert [(record.step, record.split) for record in result.records] == [(1, "train"), (2, "train"), (2, "val")]
    assert result.records[-1].metrics["acc"] == 1.0


def test_without_validation(setup: Setup, tmp_path: Path) -> None:
    for name, overrides in (("a", []), ("b", ["trainer.dpo.limit_val_batches=0"])):
        prefix = f"{{train: [{setup.train}]" + (f", validation: [{setup.validation}]}}" if overrides else "}")
        result = run_on(setup, tmp_path / name, prefix, *overrides)
        assert {record.split for record in result.records} == {"train"}


def test_tied_embeddings_and_dropout_in_the_configuration(setup: Setup, tmp_path: Path) -> None:
    """Dropout is off while training, and saved as it came; the tied head is not written twice."""
    folder = tiny.save_model(tmp_path / "model", tie_word_embeddings=True, attention_dropout=0.3)
    result = replace(setup, model=folder).run(tmp_path / "run")
    assert "lm_head.weight" not in tiny.weights(result.model)
    assert json.loads((result.model / "config.json").read_text())["attention_dropout"] == 0.3
    model = AutoModelForCausalLM.from_pretrained(result.model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


# --- the run directory ------------------------------------------------------------------------------------------------


def test_of_two_runs_that_start_at_once_one_has_the_directory(setup: Setup, tmp_path: Path) -> None:
    composed = setup.composed(tmp_path / "run")
    claim(tmp_path / "run", composed.config)
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="already holds a run"):
        claim(tmp_path / "run", composed.config)
    assert (tmp_path / "run" / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["exp_manager.explicit_log_dir=/a/b"], "/a/b"),
        (["exp_manager.explicit_log_dir='~/b'"], "HOME/b"),
        (["exp_manager.exp_dir=/a", "exp_manager.name=n"], "/a/n"),
        (["exp_manager.name=n"], "results/n"),
        ([], "results/megatron_gpt"),
    ],
)
def test_where_a_run_goes(overrides: list[str], expected: str) -> None:
    config = dpolish.compose(None, overrides, environ={}).config
    assert run_directory(config) == Path(expected.replace("HOME", str(Path.home())))


def test_a_directory_with_other_files_is_free(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slurm-1.out").write_text("log")
    assert setup.run(tmp_path / "run", "trainer.dpo.max_steps=1").model.is_dir()


def test_a_directory_that_cannot_be_made(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(RunError, match=r"config\.yaml: cannot be written: Permission denied"):
        claim(tmp_path / "run", setup.composed(tmp_path / "run").config)


@pytest.mark.parametrize("sink", ["create_tensorboard_logger", "create_wandb_logger"])
def test_a_logger_whose_package_is_missing_is_refused_before_anything_is_read(
    setup: Setup, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, sink: str
) -> None:
    monkeypatch.setattr("dpolish.track.sinks.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"exp_manager\.{sink}: the package \w+ is not installed"):
        setup.run(tmp_path / "run", f"exp_manager.{sink}=true")
    assert not (tmp_path / "run").exists()
    assert not cache.exists()


def test_tensorboard_gets_the_records_of_a_run(setup: Setup, tmp_path: Path) -> None:
    setup.run(tmp_path / "run", "exp_manager.create_tensorboard_logger=true", "trainer.dpo.max_steps=1")
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"train/rewards_margin_mean" in events.read_bytes()
    assert b"val/acc" in events.read_bytes()


def test_only_rows_that_the_run_reads_are_scored(setup: Setup, tmp_path: Path) -> None:
    few = ("model.global_batch_size=2", "trainer.dpo.max_steps=2", "trainer.dpo.limit_val_batches=1")
    assert "reference: 6 rows to score, 0 cached" in dpolish.plan(setup.composed(tmp_path / "run", *few))
    assert setup.run(tmp_path / "run", *few).num_reference_scored == 6
    rest = setup.run(tmp_path / "all")
    assert (rest.num_reference_scored, rest.num_reference_cached) == (10, 6)


def test_a_model_that_training_spoiled_is_not_saved(setup: Setup, tmp_path: Path) -> None:
    ruinous = ("model.optim.lr=1e39", "model.optim.sched.name=Constant", "trainer.dpo.max_steps=1")
    with pytest.raises(RunError, match=r"validation after step 1: .* not finite|no longer gives finite numbers"):
        setup.run(tmp_path / "run", *ruinous)
    assert not (tmp_path / "run" / "model").exists()
    unseen = (*ruinous, "trainer.dpo.limit_val_batches=0")
    with pytest.raises(RunError, match=r"not saved, for .* holds numbers that are not finite"):
        setup.run(tmp_path / "unseen", *unseen)
    assert not (tmp_path / "unseen" / "model").exists()
