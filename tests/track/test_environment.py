"""What environment.json holds, and that no secret gets into it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpolish.track.environment import environment_record, is_secret, redact_argument, redact_command

CANARY = "canary-3f9a1c"


@pytest.mark.parametrize(
    "argv",
    [
        [f"exp_manager.wandb_api_key={CANARY}"],
        [f"+a.b.password={CANARY},{CANARY}"],
        [f"++hf_token='{CANARY}'"],
        ["--api-key", CANARY],
        [f"--token={CANARY}"],
        [f"a={{b: 1, secret: {CANARY}}}"],
        [f'a={{"accessToken": "{CANARY}, {CANARY}"}}'],
        [f"data=[https://user:{CANARY}@host/x.jsonl]"],
        [f"data=s3://{CANARY}@host/x.jsonl"],
        [f"data=https://host/x?page=1&token={CANARY}"],
        [f"a.b=before-{CANARY}-after"],  # the value of a secret variable, wherever it stands
    ],
)
def test_secrets_are_left_out_of_the_command(argv: list[str]) -> None:
    redacted = redact_command(["dpolish", "dpo", *argv], {"MY_API_KEY": CANARY})
    assert redacted[:2] == ["dpolish", "dpo"]
    assert len(redacted) == 2 + len(argv)
    assert CANARY not in " ".join(redacted)
    assert "***" in " ".join(redacted)


@pytest.mark.parametrize(
    "argument",
    [
        "model.data.tokens_per_micro_batch=2048",
        "model.data.data_prefix={train: [/p/t.jsonl], validation: [/p/v.jsonl], test: [/p/v.jsonl]}",
        "pretrained_checkpoint.restore_from_path=/models/monkey",
        "https://host:8080/x?page=2",
        "trainer.max_time=00:03:30:00",
        "--model",
    ],
)
def test_everything_else_is_kept_to_the_letter(argument: str) -> None:
    assert redact_argument(argument) == argument


def test_a_flag_after_a_secret_flag_is_kept() -> None:
    assert redact_command(["--token", "--model", "m"], {}) == ["--token", "--model", "m"]


@pytest.mark.parametrize(("key", "secret"), [("model.label_key", True), ("keyboard", False), ("WANDB_API_KEY", True)])
def test_secret_words_are_whole_words(key: str, secret: bool) -> None:
    assert is_secret(key) is secret


def test_record_is_json_with_versions_and_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("NCCL_SECRET", CANARY)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("SOMETHING_ELSE", "not on the list")
    text = json.dumps(environment_record(["dpolish", f"hf_token={CANARY}"]))
    record = json.loads(text)
    assert CANARY not in text
    assert "not on the list" not in text
    assert record["command"] == ["dpolish", "hf_token=***"]
    assert record["variables"]["OMP_NUM_THREADS"] == "2"
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["packages"]["hydra-core"].startswith("1.")
    assert record["cores"] >= record["usable_cores"] >= 1
    assert record["memory_bytes"] > 2**28


def test_git_commit_is_that_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in [name for name in os.environ if name.startswith("GIT_") and name != "GIT_CEILING_DIRECTORIES"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert environment_record([])["git"] is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--no-verify", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert environment_record([])["git"] == {"commit": commit, "changed": False}
    (tmp_path / "file").write_text("2")
    assert environment_record([])["git"] == {"commit": commit, "changed": True}


def test_track_loads_without_torch() -> None:
    code = (
        "import dpolish.track.sinks, dpolish.track.console, dpolish.track.environment, sys;"
        "raise SystemExit(bool({'torch', 'transformers', 'wandb', 'tensorboard'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
