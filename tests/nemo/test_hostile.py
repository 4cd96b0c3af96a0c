"""No archive makes the reader run, write or take more than it may; each gets one message that says why."""

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.nemo.archives import config, pack
from tests.nemo.fuzz import mutants
from tests.nemo.hostile import CANARY, Hostile, corpus, good

ROOT = Path(__file__).parents[2]
MAX_MEGABYTES, ALLOWED_GROWTH = 300, 65


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    message: str
    peak: int
    before: int
    events: list[str]

    @property
    def is_small(self) -> bool:
        """Under 300 MB with the torch for CPUs; others take more by themselves."""
        return self.peak < max(MAX_MEGABYTES, self.before + ALLOWED_GROWTH)


def read_guarded(paths: list[Path], place: Path, *options: str) -> list[Result]:
    """What happens to each path in a process that may write nowhere, started in an empty folder."""
    temporary, work = place / "tmp", place / "work"
    temporary.mkdir()
    work.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.nemo.read_guarded", *options],
        input="".join(f"{path}\n" for path in paths), capture_output=True, text=True, cwd=work, env=environment,
        check=True,
    )  # fmt: skip
    assert not list(temporary.iterdir()), "a temporary file is left"
    assert not list(work.iterdir()), "a file was written"
    return [Result(**json.loads(line)) for line in done.stdout.splitlines()]


def faults(case: Hostile, result: Result) -> list[str]:
    """What is wrong with the way in which a case was refused."""
    checks = {
        f"exit code {result.code}": result.code == 2,
        "another refusal": re.search(case.refusal, result.message) is not None,
        "a message that does not name the file": "/x" in result.message,
        "a message that a terminal could obey": all(part.isprintable() for part in result.message.splitlines()),
        "a long message": len(result.message) < 2000,
        f"it did {result.events}": not result.events,
        f"{result.peak} MB": result.is_small,
    }
    return [f"{case.name}: {fault}: {result.message}" for fault, right in checks.items() if not right]


def test_every_hostile_archive_is_refused(tmp_path: Path) -> None:
    cases, paths = [], []
    for case in corpus():
        folder = tmp_path / f"case{len(cases)}"
        folder.mkdir()
        paths.append(case.make(folder))
        cases.append(case)
    assert len({case.name for case in cases}) == len(cases) >= 40
    before = sorted(map(str, tmp_path.rglob("*")))
    results = read_guarded(paths, tmp_path)
    new = {str(tmp_path / "tmp"), str(tmp_path / "work")}
    assert sorted({*map(str, tmp_path.rglob("*"))} - new) == before
    assert not list(tmp_path.rglob(CANARY))
    found = [fault for case, result in zip(cases, results, strict=True) for fault in faults(case, result)]
    assert not found, "\n".join(found)


def test_what_is_not_hostile_is_read(tmp_path: Path) -> None:
    """The same guard lets the good archive through, also where its settings name code and the environment."""
    extra = {
        "target": "os.system",
        "_target_": "os.system",
        "data": {"path": "${oc.env:HOME}", "x": {"_target_": "eval"}},
    }
    (tmp_path / "a").mkdir()
    plain = pack(good(), tmp_path / "a" / "x.nemo")
    named = pack({**good(), "model_config.yaml": yaml.safe_dump(config(**extra)).encode()}, tmp_path / "x.nemo")
    compressed = pack(good(), tmp_path / "x.tar.gz", "w:gz")
    for result in read_guarded([plain, named, compressed], tmp_path):
        assert (result.code, result.message, result.events) == (0, "", [])


def test_the_guard_sees_what_a_trusting_reader_does(tmp_path: Path) -> None:
    """Were it blind, nothing above would mean anything."""
    script = (
        "import os, sys, pickle, tests.nemo.read_guarded as guard\n"
        "guard.open_checkpoint = lambda path: pickle.loads(path.read_bytes())\n"
        "print(guard.result(guard.Path(sys.argv[1]), guard.guard()))\n"
    )
    file = tmp_path / "x"
    file.write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    events = Result(**json.loads(done.stdout)).events
    assert [event.split()[0] for event in events][:2] == ["pickle.find_class", "os.system"]
    assert (tmp_path / CANARY).exists()


def check_mutants(count: int, seed: int, place: Path) -> None:
    """Each is read or refused, none ends in a fault of ours, and nothing is written, run or taken."""
    paths = []
    for index, content in enumerate(itertools.islice(mutants(seed), count)):
        paths.append(place / f"{index}.nemo")
        paths[-1].write_bytes(content)
    results = read_guarded(paths, place, "--together")
    wrong = [
        f"{path}: {result}"
        for path, result in zip(paths, results, strict=True)
        if result.code not in (0, 2) or result.events or not result.is_small
    ]
    assert not wrong, "\n".join(wrong[:10])
    refused = sum(result.code == 2 for result in results)
    assert refused > count // 2, f"only {refused} of {count} were refused: the changes do not reach what matters"
    assert len({re.sub(r"\d+|'[^']*'", "", result.message.partition(".nemo")[2]) for result in results}) > 30


def test_2000_mutants(tmp_path: Path) -> None:
    check_mutants(2000, 2, tmp_path)
