"""The documentation is true: what it shows runs as printed, and what it names exists.

    ```python                      runs, with the other Python of its page; `>>>` is compared with what follows
    <!-- runnable --> ```console   `$ ` commands run in bash, and what they print is compared; `...` matches anything
    ```console, ```bash            the dpolish commands in it compose to a configuration; nothing runs
    ```yaml, ```jsonl              compose; are rows that can be read

A page's fences run in order, in one folder that holds a model, a little data, and the clone's `examples`.
"""

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from dpolish.config.compose import compose
from dpolish.config.keys import all_keys, all_sections
from dpolish.config.schema import ROOTS
from dpolish.config.trees import tree_of
from dpolish.data.formats import FORMATS, PairFile
from dpolish.losses.preference import LOSSES
from dpolish.records import PreferencePair
from dpolish.schedule import SCHEDULES
from tests import tiny

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RUNNABLE = "<!-- runnable -->"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

on_every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


@dataclass(frozen=True, slots=True)
class Fence:
    """A block of code."""

    language: str
    text: str
    line: int
    """Of its first line, from 1."""
    runnable: bool


def fences(page: Path) -> Iterator[Fence]:
    """The blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: int | None = None
    for index, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = index
            continue
        text = "".join(f"{inner}\n" for inner in lines[opened + 1 : index])
        yield Fence(lines[opened][3:].strip(), text, opened + 2, lines[opened - 1] == RUNNABLE)
        opened = None
    assert opened is None, f"{page}:{opened}: a fence is not closed"


def prose(page: Path) -> str:
    """A page without its fences."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a console fence, and what it prints."""

    text: str
    output: str


def commands(text: str) -> list[Command]:
    """The commands behind `$ `: they go on over a backslash at the end of a line, and to the end of a here-document."""
    found: list[Command] = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line.startswith("$ "):
            found[-1] = Command(found[-1].text, f"{found[-1].output}{line}\n")
            continue
        command = line[2:]
        while command.endswith("\\"):
            command += "\n" + next(lines)
        if here := re.search(r"<<'(\w+)'", command):
            for inner in lines:
                command += "\n" + inner
                if inner == here[1]:
                    break
        found.append(Command(command, ""))
    return found


PREAMBLE = f"""
test -e .environment && . ./.environment
dpolish() {{ '{sys.executable}' -m dpolish "$@"; }}
python() {{ '{sys.executable}' "$@"; }}
"""


def run_in_bash(script: str, folder: Path, timeout: float) -> str:
    """What a script prints, both streams. The variables that it exports are there for the next one in this folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    script = f"{PREAMBLE}{script}\nexport -p > .environment\n"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=True,
    )
    return done.stdout


def run_console(fence: Fence, folder: Path, name: str) -> None:
    """Run the commands of a fence; each must print what stands below it, if anything does. Errors leave 2."""
    wanted = commands(fence.text)
    script = "".join(f'{command.text}\necho "@@ $?"\n' for command in wanted)
    printed = re.split(r"^@@ (\d+)\n", run_in_bash(script, folder, timeout=300), flags=re.MULTILINE)
    for command, output, status in zip(wanted, printed[0::2], printed[1::2], strict=False):
        place = f"{name}:{fence.line}: $ {command.text}"
        expected = "2" if command.output.startswith("error:") else "0"
        assert status == expected, f"{place}\nleft {status} and printed:\n{output}"
        same = not command.output or doctest.OutputChecker().check_output(command.output, output, FLAGS)
        assert same, f"{place}\nshould print:\n{command.output}\nand printed:\n{output}"


def run_python(fence: Fence, names: dict[str, Any], name: str) -> None:
    """Run a Python fence in its page's namespace; of plain code also the examples in its functions' docstrings."""
    if fence.text.startswith(">>>"):
        tests = [doctest.DocTestParser().get_doctest(fence.text, names, name, name, fence.line - 1)]
    else:
        before = {*names}
        exec(compile("\n" * (fence.line - 1) + fence.text, name, "exec"), names)
        made = [names[new] for new in names.keys() - before if isinstance(names[new], FunctionType)]
        tests = [test for made_here in made for test in doctest.DocTestFinder().find(made_here, name, False, names)]
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in tests:
        failures: list[str] = []
        result = runner.run(test, out=failures.append, clear_globs=False)
        names.update(test.globs)
        assert result.failed == 0, "".join(failures)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny instruction-tuned model, in looks."""
    return tiny.save_model(tmp_path_factory.mktemp("docs") / "sft_model", max_position_embeddings=2048)


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a page's reader works: the clone, after the tutorial's first steps."""
    (tmp_path / "sft_model").symlink_to(model)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    tutorial = next(fence.text for fence in fences(ROOT / "docs" / "tutorial.md") if "cat > train.jsonl" in fence.text)
    run_in_bash("\n".join(command.text for command in commands(tutorial)), tmp_path, timeout=10)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def registries() -> Iterator[None]:
    """What a page registers is gone when it has been read."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = [(one, dict(one)) for one in (LOSSES, FORMATS, SCHEDULES)]
    yield
    for registry, entries in kept:
        registry.clear()
        registry.update(entries)


def runs(page: Path) -> bool:
    """Whether a page has something to run."""
    return any(fence.language == "python" or fence.runnable for fence in fences(page))


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("registries")
def test_what_a_page_shows_runs_as_printed(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for fence in fences(page):
        if fence.language == "python":
            run_python(fence, names, str(page.relative_to(ROOT)))
        elif fence.runnable:
            assert fence.language == "console", f"{page}:{fence.line}: only console fences can be marked"
            run_console(fence, folder, str(page.relative_to(ROOT)))


OURS = re.compile(r"(dpolish (dpo|sft|plan)|python -u \S*examples/\S+) |export ")


@on_every_page
def test_commands_compose(page: Path, folder: Path) -> None:
    shells = [fence for fence in fences(page) if fence.language in ("console", "bash") and not fence.runnable]
    for fence in shells:
        text = fence.text if fence.language == "console" else re.sub(r"(?m)(?<!\\\n)^", "$ ", fence.text)
        found = [command.text for command in commands(text) if OURS.match(command.text)]
        exports = [text for text in found if text.startswith("export ")]
        composed = [f"{text} --cfg job || exit" for text in found if text not in exports]
        printed = run_in_bash("\n".join([*exports, "GPFS=$PWD", *composed]), folder, timeout=60)
        assert printed.count("exp_manager:") == len(composed), f"{page}:{fence.line}\n{printed}"


@on_every_page
def test_yaml_composes_and_rows_can_be_read(page: Path, tmp_path: Path) -> None:
    for fence in fences(page):
        if fence.language == "yaml":
            (tmp_path / "run.yaml").write_text(fence.text, encoding="utf-8")
            compose(tmp_path / "run.yaml", environ={})
        elif fence.language == "jsonl":
            (tmp_path / "rows.jsonl").write_text(fence.text, encoding="utf-8")
            for pair in PairFile(str(tmp_path / "rows.jsonl")).records():
                assert isinstance(pair, PreferencePair), f"{page}:{fence.line}: {pair}"


@on_every_page
def test_keys_exist(page: Path) -> None:
    nemo = [tree_of(root).nemo for root in ROOTS.values()]
    known = {name for root in ROOTS.values() for name in (*all_keys(root), *all_sections(root))}
    known |= {name for keys in nemo for name in (*keys.aliases, *keys.renamed)}
    known |= {f"model.data.data_prefix.{split}" for split in ("train", "validation", "test")}
    for key in re.findall(r"`[+~]*((?:model|trainer|exp_manager|pretrained_checkpoint)(?:\.\w+)+)", prose(page)):
        assert key in known or any(keys.reason_ignored(key) for keys in nemo), f"{page}: there is no key {key}"


@on_every_page
def test_files_and_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:dpolish|tests|benchmarks|examples|docs)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), f"{page}: there is no {path}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    targets = set(phony.split())
    for target in re.findall(r"(?:`|^\$ )make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, f"{page}: there is no target {target}"


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}


@on_every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{page}: {file.name} has no heading {anchor}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert [page for page in pages if page not in navigation] == []


def test_the_tables_have_every_name() -> None:
    for file, names in (("losses.md", LOSSES), ("schedules.md", SCHEDULES), ("data.md", FORMATS)):
        text = (ROOT / "docs" / file).read_text(encoding="utf-8")
        assert [name for name in names if f"| `{name}` |" not in text] == [], file
