"""Archives and folders of NeMo's are told from Hugging Face's, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from dpolish.nemo.kind import is_nemo


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        (["x.nemo"], "x.nemo", True),
        ([], "absent.nemo", True),  # so that the message is about an archive
        (["download"], "download", True),
        ([], "org/name", False),
        (["d/model_config.yaml"], "d", True),
        (["d/context/model.yaml"], "d", True),
        (["d/run_config.yaml"], "d", True),
        (["d/config.json"], "d", False),
        (["d/config.json", "d/model_config.yaml"], "d", False),
        (["x.nemo/config.json"], "x.nemo", False),
    ],
)
def test_kinds(tmp_path: Path, files: list[str], name: str, expected: bool) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert is_nemo(tmp_path / name) is expected


def test_loads_no_torch() -> None:
    code = "import sys, dpolish.nemo.kind; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
