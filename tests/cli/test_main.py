"""The command line: help without torch, one message and an exit code for every refusal, NeMo-Aligner's own command."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dpolish.cli.commands import COMMANDS
from dpolish.cli.main import main
from tests import tiny
from tests.tiny import Setup

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs a command in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["dpolish", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        said = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Ended(caught.value.code, said.out, said.err)

    return run


Command = Callable[..., Ended]


# --- what needs no torch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_has_an_example(command: Command, arguments: list[str]) -> None:
    ended = command(*arguments, "--help")
    assert ended.code == 0
    assert f"  dpolish {arguments[0] if arguments else 'demo'}" in ended.out
    assert ended.err == ""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["dpo", "--help"], ["--version"], ["dpo", "--cfg", "job"], ["dpo", "x=1"]]
)
def test_what_needs_no_model_loads_neither_torch_nor_transformers(arguments: list[str]) -> None:
    code = f"""
import sys
from dpolish.cli.main import main
try:
    main({arguments!r})
finally:
    heavy = {{"torch", "transformers", "numpy", "wandb"}} & set(sys.modules)
    assert not heavy, heavy
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == (2 if arguments[-1] == "x=1" else 0), ended.stderr
    assert "AssertionError" not in ended.stderr


def test_python_dash_m_is_the_same_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "dpolish", "--version"], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert ended.stdout.startswith("dpolish, version ")


def test_cfg_job_prints_what_config_takes_back(command: Command, setup: Setup, tmp_path: Path) -> None:
    arguments = [*setup.arguments(tmp_path / "run"), "model.dpo.ref_policy_kl_penalty=0.35"]
    first = command("dpo", *arguments, "--cfg", "job")
    assert first.code == 0
    printed = yaml.safe_load(first.out)
    assert printed["model"]["dpo"]["ref_policy_kl_penalty"] == 0.35
    assert printed["pretrained_checkpoint"]["restore_from_path"] == str(setup.model)
    file = tmp_path / "job.yaml"
    file.write_text(first.out)
    again = command("dpo", "--config", str(file), "--cfg", "job")
    assert again.out == first.out
    assert command("plan", "--config", str(file), "--cfg", "job").out == first.out
    assert not (tmp_path / "run").exists()


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(ended: Ended, output: Path, *says: str) -> None:
    """One message that says all of this, exit code 2, and nothing left behind."""
    assert ended.code == 2, ended.err
    assert ended.err.count("error: ") == 1
    assert "Traceback" not in ended.err + ended.out
    for text in says:
        assert text in ended.err
    assert not output.exists()


OVERRIDES: dict[str, tuple[list[str], list[str]]] = {
    "typo in a key": (["model.optim.lrr=1e-5"], ["unknown key 'model.optim.lrr'", "Did you mean 'model.optim.lr'?"]),
    "typo behind +": (["+model.dpo.ref_policy_kl_penaly=1"], ["Did you mean 'model.dpo.ref_policy_kl_penalty'?"]),
    "typo behind ++": (["++trainer.dpo.max_epoch=1"], ["Did you mean 'trainer.dpo.max_epochs'?"]),
    "typo in a name": (["model.dpo.preference_loss=dop"], ["unknown value 'dop'", "Did you mean 'dpo'?"]),
    "several faults": (
        ["model.sede=1", "model.micro_batch_size=0"],
        ["2 problems:", "model.sede", "must be 1 or more"],
    ),
    "batch that does not divide": (
        ["model.data.packing=false", "model.global_batch_size=5", "model.micro_batch_size=2"],
        ["model.global_batch_size=5 is not a multiple of model.micro_batch_size=2", "model.data.packing=true"],
    ),
    "budget without packing": (
        ["model.data.packing=false", "model.data.tokens_per_micro_batch=64"],
        ["model.data.tokens_per_micro_batch needs model.data.packing=true"],
    ),
    "too long": (["model.data.seq_length=129"], ["model.data.seq_length=129 is more than the 128 positions"]),
    "all rows too long": (["model.data.seq_length=3"], ["no row is left to use", "longer than seq_length: 11"]),
    "an over-long row": (
        ["model.data.seq_length=16", "model.data.on_overlong=error"],
        ["train.jsonl:", " tokens of prompt and longer answer, over model.data.seq_length=16"],
    ),
    "rate below its floor": (["model.optim.sched.min_lr=1.0"], ["0.002 is below model.optim.sched.min_lr 1"]),
    "no device": (["trainer.devices=0"], ["trainer.devices", "must be 1 or more, got 0"]),
    "tensor parallelism on one rank": (
        ["model.tensor_model_parallel_size=2"],
        ["model.tensor_model_parallel_size=2 does not divide the 1 ranks"],
    ),
    "offload on one rank": (["model.fsdp_cpu_offload=true"], ["one rank does without it"]),
    "lora": (["model.peft.peft_scheme=lora"], ["lora is not in this version", "set peft_scheme=none"]),
    "time limit": (["exp_manager.max_time_per_run=00:01:00:00"], ["max_time_per_run", "not in this version"]),
    "resuming": (["exp_manager.resume_from_checkpoint=/x"], ["resuming is not in this version"]),
    "dropout": (["model.hidden_dropout=0.1"], ["model.hidden_dropout", "must be 0 in DPO"]),
    "float16": (["trainer.precision=16"], ["float16 needs loss scaling"]),
    "attention of another device": (["model.attention_backend=flex"], ["attention_backend=flex does not run on cpu"]),
    "splits that leave nothing": (
        ["model.data.data_prefix={data}", "model.data.splits_string='0,1,1'"],
        ["model.data.splits_string=0,1,1 leaves no training row of 11"],
    ),
    "a row format that is none": (["model.data.format=hhh"], ["unknown row format 'hhh'"]),
}  # fmt: skip


@pytest.mark.parametrize("verb", ["dpo", "plan"])
@pytest.mark.parametrize("name", OVERRIDES)
def test_a_configuration_that_cannot_work(command: Command, setup: Setup, tmp_path: Path, name: str, verb: str) -> None:
    overrides, says = OVERRIDES[name]
    files = [] if any("data_prefix" in override for override in overrides) else ["--train", str(setup.train)]
    overrides = [override.replace("{data}", str(setup.train)) for override in overrides]
    base = ["--model", str(setup.model), *files, "--output", str(tmp_path / "run")]
    refused(command(verb, *base, *setup.overrides, *overrides), tmp_path / "run", *says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(command: Command, setup: Setup, tmp_path: Path) -> None:
    ended = command("dpo", *setup.arguments(tmp_path / "run"), "trainer.accelerator=gpu")
    refused(ended, tmp_path / "run", "trainer.accelerator=gpu", "Use trainer.accelerator=cpu")


def test_a_typo_in_a_file(command: Command, setup: Setup, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  global_batch_size: 4\n  optm: {lr: 1e-5}\n")
    ended = command("dpo", "--config", str(file), *setup.arguments(tmp_path / "run"))
    refused(ended, tmp_path / "run", f"{file}:3: unknown key 'model.optm", "model.optim")


def test_nothing_given(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(command("dpo"), tmp_path / "results", "restore_from_path is missing", "data_prefix.train is missing")


MISSING = {
    "model": (["--model", "{tmp}/modle"], ["{tmp}/modle: no such folder. Did you mean 'model'?"]),
    "hub id": (
        ["--model", "nobody/nothing"],
        ["nobody/nothing: no folder of this name, and the hub gives no such model"],
    ),
    "nemo archive": (["--model", "{tmp}/gpt.nemo"], ["{tmp}/gpt.nemo: no such file or folder"]),
    "train": (["--train", "{tmp}/no.jsonl"], ["{tmp}/no.jsonl"]),
    "validation": (["--validation", "{tmp}/no.jsonl"], ["{tmp}/no.jsonl"]),
    "config": (["--config", "{tmp}/no.yaml"], ["{tmp}/no.yaml: cannot be read: No such file or directory"]),
    "config name": (["--config-name", "gpt_sft"], ["--config-name gpt_sft: there is no such file"]),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_file_that_is_not_there(command: Command, setup: Setup, tmp_path: Path, name: str) -> None:
    (tmp_path / "model").mkdir()
    given, says = ([text.replace("{tmp}", str(tmp_path)) for text in texts] for texts in MISSING[name])
    flags = {"--model": str(setup.model), "--train": str(setup.train), "--output": str(tmp_path / "run")}
    flags |= dict(zip(given[::2], given[1::2], strict=True))
    ended = command("dpo", *(part for flag in flags.items() for part in flag), *setup.overrides)
    refused(ended, tmp_path / "run", *says)


def test_bad_rows_are_named_all_at_once(command: Command, setup: Setup, tmp_path: Path) -> None:
    good = json.dumps(tiny.rows(1)[0])
    (tmp_path / "bad.jsonl").write_text(f'{good}\n{{"prompt": "x"\n{good}\n{{"prompt": "x", "chosen_response": "y"}}\n')
    ended = command("dpo", *setup.arguments(tmp_path / "run"), "--train", str(tmp_path / "bad.jsonl"))
    refused(ended, tmp_path / "run", "2 problems:", "bad.jsonl:2", "bad.jsonl:4", "rejected_response")


# --- models that cannot be trained ------------------------------------------------------------------------------------


def _edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _nan(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: tensors["model.norm.weight"][3:5].fill_(float("nan")))


def _inf(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: tensors["lm_head.weight"][3].fill_(float("-inf")))


def _missing(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))


def _misshapen(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    _edit_weights(folder, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))


def _small_vocabulary(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny.save_model(folder, vocab_size=395)


def _cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "house", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "NaN": (_nan, ["model.norm.weight holds 2 non-finite numbers (NaN or Inf)", "take an earlier one"]),
    "infinity": (_inf, ["lm_head.weight holds 32 non-finite numbers"]),
    "missing tensor": (_missing, ["does not fit its config.json", "missing model.layers.1.self_attn.k_proj.weight"]),
    "misshapen tensor": (_misshapen, ["does not fit its config.json", "mlp.up_proj.weight has another shape"]),
    "ids beyond the vocabulary": (_small_vocabulary, ["the model's vocabulary has 395 tokens", "train.jsonl:"]),
    "cut short": (_cut_short, ["model.safetensors: ", "cut short or is damaged"]),
    "pickled weights": (_pickled, ["only pickled weights (pytorch_model.bin), which are never opened"]),
    "no config.json": (_no_config, ["no config.json here; name a Hugging Face model folder"]),
    "code of its own": (_own_code, ["it needs code of its own, which is never run"]),
    "no tokenizer": (_no_tokenizer, ["cannot read the tokenizer"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_trained(command: Command, setup: Setup, tmp_path: Path, cache: Path, name: str) -> None:
    breaks, says = BROKEN[name]
    folder = Path(shutil.copytree(setup.model, tmp_path / "model"))
    breaks(folder)
    ended = command("dpo", *setup.arguments(tmp_path / "run"), "--model", str(folder))
    refused(ended, tmp_path / "run", str(folder) if name != "ids beyond the vocabulary" else "vocabulary", *says)
    assert not cache.exists(), "nothing was computed"


def test_a_refusal_is_all_that_is_on_stderr(setup: Setup, tmp_path: Path) -> None:
    """In a process of its own, where transformers would print reports and bars."""
    folder = Path(shutil.copytree(setup.model, tmp_path / "model"))
    _misshapen(folder)
    arguments = ["-m", "dpolish", "dpo", *setup.arguments(tmp_path / "run"), "--model", str(folder)]
    ended = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"error: {folder}: the checkpoint does not fit its config.json:",
        "  model.layers.0.mlp.up_proj.weight has another shape than the configuration says",
    ]


# --- the run directory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["dpo", "plan"])
@pytest.mark.parametrize("left", ["config.yaml", "metrics.jsonl", "model", "checkpoints"])
def test_a_directory_that_holds_a_run_is_never_overwritten(
    command: Command, setup: Setup, tmp_path: Path, left: str, verb: str
) -> None:
    (tmp_path / "run" / left).mkdir(parents=True)
    ended = command(verb, *setup.arguments(tmp_path / "run"))
    assert ended.code == 2
    assert f"{tmp_path / 'run'} already holds a run ({left}); it is never overwritten" in ended.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [left]


def test_a_directory_that_is_a_file(command: Command, setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        ended = command("dpo", *setup.arguments(output))
        assert ended.code == 2
        assert f"{tmp_path / 'file'} is a file" in ended.err
    assert (tmp_path / "file").read_text() == "mine"


# --- errors of other kinds --------------------------------------------------------------------------------------------


def test_a_failed_run_exits_with_3(command: Command, setup: Setup, tmp_path: Path) -> None:
    explosive = ["model.optim.lr=1e30", "trainer.dpo.gradient_clip_val=0"]
    ended = command("dpo", *setup.arguments(tmp_path / "run"), *explosive)
    assert ended.code == 3
    assert "error: step 2: the gradient norm is" in ended.err
    assert "Traceback" not in ended.err


def test_hydra_full_error_shows_the_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    ended = command("dpo", "model.sede=1")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert "error: " in ended.err


def test_an_unknown_option_is_a_usage_error_or_an_override(command: Command) -> None:
    assert command("dopp").code == 2
    ended = command("dpo", "--modle", "x")
    assert ended.code == 2
    assert "--modle" in ended.err


# --- NeMo-Aligner's command -------------------------------------------------------------------------------------------


def test_the_tutorials_command_runs(setup: Setup, tmp_path: Path) -> None:
    """As on the tutorial's terminal, with the model a folder, one device, and the CPU named."""
    prefix = f"{{train: [{setup.train}], validation: [{setup.validation}], test: [{setup.validation}]}}"
    script = ROOT / "examples" / "nlp" / "gpt" / "train_gpt_dpo.py"
    arguments = [
        "trainer.num_nodes=1",
        "trainer.devices=1",
        "++model.micro_batch_size=1",
        "++model.global_batch_size=512",
        f"pretrained_checkpoint.restore_from_path={setup.model}",
        f"model.data.data_prefix={prefix}",
        "exp_manager.create_wandb_logger=false",
        "exp_manager.wandb_logger_kwargs.project=dpo_training",
        "exp_manager.wandb_logger_kwargs.name=dpo_training",
        f"exp_manager.explicit_log_dir={tmp_path / 'run'}",
        "++trainer.dpo.max_epochs=1",
        "++model.dpo.ref_policy_kl_penalty=0.1",
        "trainer.accelerator=cpu",
        "trainer.precision=32",
    ]
    ended = subprocess.run(
        [sys.executable, "-u", str(script), *arguments], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "step 1/1  train" in ended.stdout
    assert "step 1/1  val" in ended.stdout
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    (record,) = tiny.metrics(tmp_path / "run")
    assert record["consumed_samples"] == 11
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["command"][1:] == arguments
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
