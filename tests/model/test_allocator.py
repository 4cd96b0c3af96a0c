"""What glibc is asked for is granted, and changes no result: page faults of equal work fall to nothing."""

import resource
import subprocess
import sys

import pytest

PROBE = """
import resource, sys
from dpolish.model.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        block = bytearray(48 * 2**20)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_memory_that_is_freed_is_not_faulted_in_again() -> None:
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    page = resource.getpagesize()
    assert faults("plain") > 48 * 2**20 // page  # the test can fail: without it every block is mapped anew
    assert faults("keep") < 48 * 2**20 // page
