"""The Python face."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("first", ["dpolish", "dpolish.train.loop", "dpolish.plan", "dpolish.api"])
def test_verbs_are_functions_whatever_was_imported_before(first: str) -> None:
    """Rooms of the same names lie beside them: importing one must not put the module in the verb's place."""
    code = f"""
import {first}, dpolish, types
for _ in range(2):
    for verb in (dpolish.compose, dpolish.plan, dpolish.train):
        assert isinstance(verb, types.FunctionType), verb
import dpolish.train.step, dpolish.plan
assert isinstance(dpolish.train, types.FunctionType) and isinstance(dpolish.plan, types.FunctionType)
from dpolish.train import step
from dpolish.plan import make_plan
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
