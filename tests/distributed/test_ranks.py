"""The ranks that tests start: one that leaves without a word fails the test at once, and its words are shown."""

import os
import sys
import time

import pytest

from tests.distributed.ranks import run_ranks


def leave(culprit: int) -> int:
    """One rank ends as the watch ends it; the others would wait for long."""
    if int(os.environ["RANK"]) == culprit:
        sys.stderr.write("error: the reason\n")
        sys.stderr.flush()
        os._exit(3)
    time.sleep(60)
    return 0


def test_a_rank_that_leaves_without_an_answer_fails_the_test_with_its_words() -> None:
    start = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"(?s)rank 1: 3.*error: the reason"):
        run_ranks(2, leave, 1)
    assert time.monotonic() - start < 30
