"""The cheap part of the doctor says what the whole one says."""

import time
from pathlib import Path

from dpolish.data.check.glance import Glance
from dpolish.data.check.run import check
from dpolish.data.formats import ConversationFile, PairFile
from dpolish.records import Conversation, PreferencePair
from tests.data.check.corpus import assistant, pair, rows, user


def glance_at(train: Path, validation: Path | None = None, ends: tuple[str, ...] = ()) -> tuple[list[str], Glance]:
    glance = Glance(ends)
    for path, take in ((train, glance.train), (validation, glance.validation)):
        for record in PairFile(str(path)).records() if path else ():
            assert isinstance(record, PreferencePair)
            take(record)
    return list(glance.warnings()), glance


def test_nothing_to_say(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows(pair("a"), pair("b")))
    warnings, glance = glance_at(path, None, ())
    assert warnings == []
    assert [record.where for record in glance.first] == [f"{path}:1", f"{path}:2"]


def test_it_says_what_the_doctor_finds(tmp_path: Path) -> None:
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    content = [pair(f"p{n}", f"{'long ' * 9}{n}</s>", f"{n}</s>") for n in range(60)]
    content += [pair("q", "yes</s>", "no</s>"), pair("q", "no</s>", "yes</s>"), pair("r", "a" * 99, "b</s>")]
    content += [pair("same", "x</s>", "x</s>"), pair("same", "x</s>", "x</s>")]
    train.write_bytes(rows(*content))
    valid.write_bytes(rows(pair("p7", "e</s>", "f</s>"), pair("p9", "e</s>", "f</s>")))
    warnings, _ = glance_at(train, valid, ("</s>",))
    assert warnings == [
        "length alone tells which answer is chosen: The longer answer is the chosen one in 95% of 65 pairs.",
        f"pairs that contradict each other, with the answers exchanged: 2 ({train}:61, :62)",
        f"rows whose prompt is in the validation data too: 2 ({train}:8, :10)",
        f"rows with an answer that does not end with </s>: 1 ({train}:63)",
    ]
    counts = {finding.kind: finding.count for finding in check([str(train)], [str(valid)]).findings}
    assert (counts["contradiction"], counts["leaked-prompt"], counts["missing-end-of-turn"]) == (2, 2, 1)


def test_demonstrations(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows({"messages": [user("a"), assistant("b")]}, {"messages": [user("c"), assistant("b")]}))
    glance = Glance(("</s>",))
    for record in ConversationFile(str(path)).records():
        assert isinstance(record, Conversation)
        glance.train(record)
        glance.validation(record)
    assert list(glance.warnings()) == [f"rows whose prompt is in the validation data too: 2 ({path}:1, :2)"]


def test_texts_without_prompts_are_not_shared(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows({"text": "a"}, {"text": "b"}))
    glance = Glance()
    for record in ConversationFile(str(path)).records():
        assert isinstance(record, Conversation)
        glance.train(record)
        glance.validation(record)
    assert list(glance.warnings()) == []


def test_it_is_cheap(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        rows(*(pair([user(f"p{n} " * 20)], assistant("a " * 40), assistant("b " * 40)) for n in range(3000)))
    )
    records = [record for record in PairFile(str(path)).records() if isinstance(record, PreferencePair)]
    glance = Glance(("</s>",))
    began = time.process_time()
    for record in records:
        glance.train(record)
    list(glance.warnings())
    assert (time.process_time() - began) / len(
        records
    ) < 100e-6  # some ten in truth, beside a millisecond of tokenising
