"""Folders and hub ids are read through the `datasets` library, with a place for every row and one clear error."""

import builtins
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from dpolish.data.formats import ConversationFile, PairFile
from dpolish.data.hub import Address, open_rows, rows_of
from dpolish.data.read import Fault, Row
from dpolish.errors import DataError
from dpolish.records import Conversation, Message, PreferencePair
from tests.data.shapes import write

ROWS = [{"prompt": f"p{index}", "chosen": "c", "rejected": "r"} for index in range(3)]
CHATS = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "c", "tool_calls": None}]}]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The library, with a cache of the test's own."""
    datasets: ModuleType = pytest.importorskip("datasets", reason="needs the extra dpolish[hub]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    datasets.disable_progress_bars()
    return datasets


Save = Callable[..., str]


@pytest.fixture
def save(library: ModuleType, tmp_path: Path) -> Save:
    """Write rows with `save_to_disk`: alone, or as splits."""

    def save(**splits: list[dict[str, object]]) -> str:
        path = str(tmp_path / "_".join(splits))
        made = {name: library.Dataset.from_list(rows) for name, rows in splits.items()}
        saved = made["alone"] if "alone" in made else library.DatasetDict(made)
        saved.save_to_disk(path)
        return path

    return save


def wheres(path: str) -> list[str]:
    return [item.where for item in open_rows(path)]


def test_a_saved_data_set_is_read(save: Save) -> None:
    path = save(alone=ROWS)
    assert list(open_rows(path)) == [Row(f"{path}:{index + 1}", row) for index, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=r": the data set has no splits: leave :train out$"):
        list(open_rows(f"{path}:train"))


def test_a_split_is_chosen_or_must_be_named(save: Save) -> None:
    path = save(train=ROWS, test=ROWS[:1])
    assert wheres(path) == [f"{path}:train:{number}" for number in (1, 2, 3)]
    assert wheres(f"{path}:test") == [f"{path}:test:1"]
    with pytest.raises(DataError, match=r"no split 'tests'\. Did you mean 'test'\? It has train, test\.$"):
        list(open_rows(f"{path}:tests"))
    path = save(train_prefs=ROWS, test_prefs=ROWS)
    with pytest.raises(
        DataError, match=rf"^{path}: say which split, as in {path}:train_prefs\. It has train_prefs, test"
    ):
        list(open_rows(path))
    path = save(only=ROWS)
    assert wheres(path) == [f"{path}:only:{number}" for number in (1, 2, 3)]


def test_an_empty_data_set_is_a_fault(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = library.Dataset.from_dict({"prompt": []})
    monkeypatch.setattr(library, "load_dataset", lambda *_: library.DatasetDict({"train": empty}))
    assert list(open_rows("org/name")) == [Fault("org/name:train:1", "no rows here: the data set is empty")]


def test_a_folder_of_data_files_is_read(library: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, *ROWS, name="train.jsonl")
    write(folder, *ROWS[:2], name="test.jsonl")
    assert wheres(str(folder)) == [f"{folder}:train:{number}" for number in (1, 2, 3)]
    assert wheres(f"{folder}:test") == [f"{folder}:test:{number}" for number in (1, 2)]
    write(folder, {"prompt": [1], "chosen": {"a": 1}}, name="train.jsonl")
    (folder / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": {"x": 1}}\n{')
    with pytest.raises(DataError, match=rf"^{folder}: the folder cannot be loaded as a data set: "):
        list(open_rows(str(folder)))


def test_files_of_records_come_from_there(save: Save) -> None:
    path = save(alone=ROWS)
    file = PairFile(path)
    pairs = list(file.records())
    assert [item.where for item in pairs if isinstance(item, PreferencePair)] == [f"{path}:{n}" for n in (1, 2, 3)]
    assert file.num_rows == 3
    path = save(chat=CHATS)
    (demonstration,) = ConversationFile(path).records()
    assert isinstance(demonstration, Conversation)
    assert demonstration.pieces == (Message("user", "Hi"), Message("assistant", "c"))
    assert demonstration.where == f"{path}:chat:1"


def test_pictures_are_not_decoded_but_refused(library: ModuleType, tmp_path: Path) -> None:
    rows = [{**ROWS[0], "image": {"bytes": b"no picture", "path": None}}, {**ROWS[0], "image": None}]
    features = library.Features({**dict.fromkeys(ROWS[0], library.Value("string")), "image": library.Image()})
    path = str(tmp_path / "pictures")
    library.Dataset.from_list(rows, features=features).save_to_disk(path)
    first, second = PairFile(path).records()
    assert str(first) == f"{path}:1: image: pictures and sound cannot be trained on: only text can"
    assert isinstance(second, PreferencePair)


# Without the library, without the network


def test_the_cache_of_the_hub_is_all_there_is_offline(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in ("org/name", "org/name:train", "org/name/config:train"):
        named = path.partition(":")[0]
        with pytest.raises(DataError, match=rf"^{named}: no such file, and .*HF_HUB_OFFLINE forbids to fetch it"):
            list(PairFile(path).records())


def test_a_hub_that_fails_is_one_error(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def load_dataset(name: str, config: str | None) -> None:
        raise ConnectionError(f"{name} {config}\nand a long story")

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    with pytest.raises(DataError) as error:
        list(open_rows("org/name/config:split"))
    assert str(error.value) == (
        "org/name/config: no such file, and as a data set of the hub it cannot be loaded: org/name config. "
        "Check the name, access and network."
    )


def test_rows_of_the_hub_have_its_name_and_split(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, config: str | None) -> object:
        asked.append((name, config))
        return library.DatasetDict({"train": library.Dataset.from_list(ROWS), "test": library.Dataset.from_list(ROWS)})

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    assert wheres("org/name:test")[-1] == "org/name:test:3"
    assert wheres("org/name")[-1] == "org/name:train:3"
    assert wheres("org/name/config:test")[-1] == "org/name/config:test:3"
    assert asked == [("org/name", None), ("org/name", None), ("org/name", "config")]


def test_without_the_library_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "datasets":
            raise ModuleNotFoundError("No module named 'datasets'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    write(tmp_path, *ROWS, name="train.jsonl")
    with pytest.raises(
        DataError, match=r"a folder; reading it needs the package datasets: pip install 'dpolish\[hub\]'"
    ):
        list(rows_of(str(tmp_path)))
    with pytest.raises(DataError, match=r"it holds train\.jsonl$"):
        list(rows_of(str(tmp_path)))
    with pytest.raises(DataError, match=r"^org/name: no such file; if a data set .* needs the package datasets: pip"):
        list(rows_of("org/name"))


# Which paths are meant


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("org/name", Address("org/name", None, None, folder=False)),
        ("org/name.v2:train", Address("org/name.v2", None, "train", folder=False)),
        ("org/name/config:train", Address("org/name", "config", "train", folder=False)),
        ("org/name/config", Address("org/name", "config", None, folder=False)),
        ("name", None),
        ("org/train.jsonl", None),
        ("org/train.jsonl.gz", None),
        ("org/a/b/c", None),
        ("/org/name", None),
        ("./name", None),
        ("../org/name", None),
        ("~/name", None),
        ("here/name", None),
        ("a b/c", None),
    ],
)
def test_what_a_path_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, address: Address | None) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert Address.of(path) == address


def test_what_is_there_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    write(tmp_path / "org", *ROWS, name="name")
    assert Address.of("org/name") is None
    assert len(list(rows_of("org/name"))) == 3
    assert Address.of("org") is None  # holds nothing that looks like data
    with pytest.raises(DataError, match=r"^org: a folder; name the files in it: it holds name$"):
        list(rows_of("org"))
    write(tmp_path / "org", *ROWS, name="train.jsonl")
    assert Address.of("org") == Address("org", None, None, folder=True)
    assert Address.of("org:train") == Address("org", None, "train", folder=True)
    with pytest.raises(DataError, match=r"^org/trian\.jsonl: no such file\. Did you mean 'org/train\.jsonl'\?"):
        list(rows_of("org/trian.jsonl"))
    with pytest.raises(DataError, match=r"^nothing: neither a folder with data nor the id of a data set"):
        list(open_rows("nothing"))


def test_the_library_loads_only_for_its_own(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = write(tmp_path, *ROWS)
    code = (
        "import sys\nfrom dpolish.data.formats import PairFile\n"
        f"assert len(list(PairFile({path!r}).records())) == 3\n"
        "print([name for name in ('datasets', 'torch', 'transformers', 'pyarrow') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert json.loads(done.stdout.replace("'", '"')) == []
