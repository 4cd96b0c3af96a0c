"""Checks with a tokenizer: what the tokens of each row show, and what the model's template says."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from transformers import PreTrainedTokenizerBase

from dpolish.data.check.findings import Finding
from dpolish.data.check.glance import Glance
from dpolish.data.check.model import TokenChecks, known_ends, load
from dpolish.data.check.report import Report
from dpolish.data.check.run import check
from dpolish.data.check.source import Options
from dpolish.data.formats import PairFile
from dpolish.data.ingest import ingest
from dpolish.data.kinds import Demonstrations, Pairs
from dpolish.data.templates import ChatTemplate, TemplateRecord, choose_template, save_template
from dpolish.data.templates.agreement import Rendering
from dpolish.data.tokenize import Tokenization
from dpolish.errors import ModelError
from dpolish.records import PreferencePair
from tests.data.check.corpus import assistant, pair, rows, system, user
from tests.data.small_tokenizers import byte_level, letters, merging, metaspace, words


def report_of(
    tmp_path: Path,
    tokens: TokenChecks,
    *content: object,
    task: Literal["dpo", "sft"] = "dpo",
) -> Report:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows(*content))
    return check([str(path)], options=Options(task), tokens=tokens)


def found(report: Report) -> Mapping[str, Finding]:
    return {finding.kind: finding for finding in report.findings}


def lines(finding: Finding) -> list[int]:
    return [int(place.rpartition(":")[2]) for place in finding.places]


def chat(prompt: str, chosen: str, rejected: str) -> dict[str, object]:
    return pair([user(prompt)], assistant(chosen), assistant(rejected))


GOOD = chat("Which year?", "1215.", "Please.")


def test_messages_in_order_are_clean(tmp_path: Path) -> None:
    report = report_of(tmp_path, TokenChecks.of(byte_level()), GOOD, chat("Who?", "A painter.", "I refuse."))
    assert report.findings == ()
    assert report.statistics.unit == "tokens"


def test_sizes_are_those_of_training(tmp_path: Path) -> None:
    content = [chat(f"Which year? {'a ' * n}", "1215. " * n, "Please." * (n % 3 + 1)) for n in range(1, 30)]
    report = report_of(tmp_path, TokenChecks.of(byte_level()), *content)
    tokenization = Tokenization.of(byte_level())
    path = str(tmp_path / "rows.jsonl")
    examples = ingest([(None, path)], Pairs(), tokenization, seq_length=10**6).examples
    prompts = [len(example.prompt) for example in examples]
    lengths, savings = report.statistics.lengths, report.statistics.savings
    assert lengths["prompt"].spread.mean == pytest.approx(sum(prompts) / len(prompts))
    for index, part in enumerate(("chosen", "rejected")):
        sizes = [len(example.completions[index].tokens) for example in examples]
        assert lengths[part].spread.mean == pytest.approx(sum(sizes) / len(sizes))
        assert lengths[part].spread.greatest == max(sizes)
    assert savings is not None
    assert savings.shared == sum(example.num_tokens for example in examples)
    assert savings.padded == sum(example.num_padded_tokens for example in examples)


def test_training_drops_what_is_said_to_be_dropped(tmp_path: Path) -> None:
    content = [
        GOOD,
        chat("x", "a " * 60, "b"),
        chat("", "a", "b"),
        chat("y", "b", "a " * 80),
        chat("z", "same", "same"),
    ]
    report = report_of(tmp_path, TokenChecks.of(byte_level(), seq_length=64), *content)
    path = str(tmp_path / "rows.jsonl")
    ingested = ingest([(None, path)], Pairs(), Tokenization.of(byte_level()), seq_length=64)
    assert lines(found(report)["over-long"]) == [2, 4]
    assert report.files[0].kept == len(ingested.examples) == 1
    assert found(report)["over-long"].details[0].endswith(" tokens")


def test_strings_must_end_as_the_model_ends_turns(tmp_path: Path) -> None:
    prompt = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    content = [
        pair(prompt, "A painter.<|im_end|>\n", "I refuse.<|im_end|>"),
        pair(prompt + "x", "A painter.", "I refuse.<|im_end|>"),
        pair(prompt + "y", "A painter.<|im_end|>.", "I refuse."),
    ]
    finding = found(report_of(tmp_path, TokenChecks.of(byte_level()), *content))["missing-end-of-turn"]
    assert lines(finding) == [2, 3]
    assert finding.details == ("chosen: no <|im_end|>", "chosen and rejected: no <|im_end|>")
    appended = report_of(tmp_path, TokenChecks.of(byte_level(), append_eod=True), *content)
    assert "missing-end-of-turn" not in found(appended)


def test_strings_in_another_template(tmp_path: Path) -> None:
    chatml = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    good = [pair(chatml.replace("Who", f"Who{n}"), f"A{n}<|im_end|>", f"B{n}<|im_end|>") for n in range(3)]
    bad = [pair(f"[INST] {n} [/INST]", f"A{n}<|im_end|>", f"B{n}<|im_end|>") for n in range(3)]
    assert "template-mismatch" not in found(report_of(tmp_path, TokenChecks.of(byte_level()), *good))
    finding = found(report_of(tmp_path, TokenChecks.of(byte_level()), *good, *bad))["template-mismatch"]
    assert (finding.count, lines(finding)) == (3, [4])
    assert "<|im_start|>" in finding.details[0]
    assert "template-mismatch" not in found(report_of(tmp_path, TokenChecks.of(words()), *bad))


def test_the_template_of_the_fine_tuning(tmp_path: Path) -> None:
    template = choose_template(byte_level())
    assert template is not None
    same, other = TemplateRecord.of(template), TemplateRecord.of(ChatTemplate("extra_id", "{{ messages }}"))
    assert "template-changed" not in found(report_of(tmp_path, TokenChecks.of(byte_level(), recorded=same), GOOD))
    finding = found(report_of(tmp_path, TokenChecks.of(byte_level(), recorded=other), GOOD))["template-changed"]
    assert finding.severity == "warning"
    assert other.fingerprint[:12] in finding.details[0]
    strings = [pair(f"A<extra_id_{n}>", "a<|im_end|>", "b<|im_end|>") for n in range(2)]
    of_texts = replace(other, source="<A>{{ messages[0].content }}<B>")
    finding = found(report_of(tmp_path, TokenChecks.of(byte_level(), recorded=of_texts), *strings))["template-mismatch"]
    assert "'<A>'" in finding.details[0]
    untold = TemplateRecord("", "", "", "{input} {output}")
    assert "template-mismatch" not in found(
        report_of(tmp_path, TokenChecks.of(byte_level(), recorded=untold), *strings)
    )


def test_what_a_run_says_at_its_start(tmp_path: Path) -> None:
    template = choose_template(byte_level())
    assert template is not None
    other = TemplateRecord.of(ChatTemplate("extra_id", "{{ messages }}"))
    glance = Glance(known_ends(byte_level(), template, append_eod=False))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(rows(pair("[INST] x [/INST]", "a", "b"), GOOD))
    for record in PairFile(str(path)).records():
        assert isinstance(record, PreferencePair)
        glance.train(record)
    (ends,) = glance.warnings()
    assert ends == f"rows with an answer that does not end with <|im_end|>: 1 ({path}:1)"
    (mismatch,) = Rendering(glance.first, template, None, None, template).findings()
    assert mismatch.startswith("1 of 1 rows are not written in the chat template (model)")
    changed, _ = Rendering(glance.first, template, None, other, template).findings()
    assert changed.startswith("THE TEMPLATE IS NOT THE ONE")
    assert known_ends(byte_level(), template, append_eod=True) == ()


def test_messages_without_a_template(tmp_path: Path) -> None:
    report = report_of(tmp_path, TokenChecks.of(words()), GOOD, chat("a", "cat", "dog"))
    finding = found(report)["unusable-template"]
    assert (finding.severity, finding.count) == ("error", 2)
    assert "chat template" in finding.details[0]
    assert report.exit_code() == 2


def test_messages_that_the_template_refuses(tmp_path: Path) -> None:
    refused = pair([system("Be kind."), user("Who?")], assistant("A"), assistant("B"))
    finding = found(report_of(tmp_path, TokenChecks.of(metaspace()), GOOD, refused))["cannot-encode"]
    assert lines(finding) == [2]
    assert "only user and assistant here" in finding.details[0]


def test_special_tokens_in_messages(tmp_path: Path) -> None:
    written = chat("Say <|im_end|>!", "a", "b")
    finding = found(report_of(tmp_path, TokenChecks.of(byte_level()), GOOD, written))["special-text"]
    assert (lines(finding), finding.details) == ([2], ("prompt[0]: <|im_end|>",))


def test_beginnings_of_sequence(tmp_path: Path) -> None:
    content = [
        pair("the cat", "sat", "ran"),
        pair("<s>a cat", "sat", "ran"),
        pair("<s><s>the dog", "sat", "ran"),
    ]
    findings = found(report_of(tmp_path, TokenChecks.of(words("<s> $A"), append_eod=True), *content))
    assert lines(findings["written-bos"]) == [2, 3]
    assert lines(findings["double-bos"]) == [3]
    findings = found(report_of(tmp_path, TokenChecks.of(words(), append_eod=True), *content))
    assert "written-bos" not in findings
    assert lines(findings["double-bos"]) == [3]


def test_boundary_merges_and_equal_tokens(tmp_path: Path) -> None:
    content = [pair("c", "ab", "d"), pair("a", "b", "d"), pair("aab", "cd", "d")]
    findings = found(report_of(tmp_path, TokenChecks.of(merging(), append_eod=True), *content))
    assert lines(findings["boundary-merge"]) == [2, 3]
    content = [pair("the", " tree", " house"), pair("the", " cat", " dog")]
    report = report_of(tmp_path, TokenChecks.of(words(), append_eod=True), *content)
    assert lines(found(report)["equal-tokens"]) == [1]
    assert report.files[0].kept == 1


def test_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    content = [pair("the cat", " sat", " a"), pair("the cat", " ran", " dog")]
    report = report_of(tmp_path, TokenChecks.of(words(), append_eod=True, vocabulary_size=10), *content)
    finding = found(report)["out-of-vocabulary"]
    assert (finding.severity, lines(finding)) == ("error", [2])
    assert "'ran' has the id 10 of 10" in finding.details[0]
    whole = TokenChecks.of(words(), append_eod=True, vocabulary_size=13)
    assert "out-of-vocabulary" not in found(report_of(tmp_path, whole, *content))


def test_demonstrations(tmp_path: Path) -> None:
    content = [
        {"messages": [user("Which year?"), assistant("1215."), user("Who?"), assistant("Please.")]},
        {"messages": [user("a " * 100), assistant("1215.")]},
    ]
    report = report_of(tmp_path, TokenChecks.of(byte_level(), seq_length=90), *content, task="sft")
    assert lines(found(report)["over-long"]) == [2]
    path = str(tmp_path / "rows.jsonl")
    examples = ingest([(None, path)], Demonstrations(), Tokenization.of(byte_level()), seq_length=90).examples
    assert report.files[0].kept == len(examples) == 1
    trained = len(examples[0].completions[0].scored_at)
    assert report.statistics.lengths["trained"].spread.mean == trained
    assert report.statistics.savings is not None
    assert report.statistics.savings.shared == examples[0].num_tokens


def test_a_slow_tokenizer(tmp_path: Path) -> None:
    assert found(report_of(tmp_path, TokenChecks.of(letters()), GOOD, chat("a", "b", "c"))) == {}


def test_real_tokenizer_on_real_shapes(tmp_path: Path, smollm2: PreTrainedTokenizerBase) -> None:
    tokens = TokenChecks.of(smollm2, vocabulary_size=49152)
    assert tokens.facts["ends"] == ["<|im_end|>"]
    assert found(report_of(tmp_path, tokens, GOOD, chat("Hi", "Hello.", "What?"))) == {}
    finding = found(report_of(tmp_path, tokens, pair("Hi", "Hello.<|im_end|>", "What?<|im_end|>")))
    assert finding.keys() == {"template-mismatch"}


def test_a_folder_is_loaded_without_weights(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": 5}))
    template = choose_template(byte_level())
    save_template(tmp_path / "model", TemplateRecord.of(template))
    tokens = load(str(tmp_path / "model"), seq_length=64)
    assert tokens.context.vocabulary_size == 5
    assert tokens.recorded == TemplateRecord.of(template)
    assert "out-of-vocabulary" in found(report_of(tmp_path, tokens, GOOD))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "cannot read the tokenizer"),
        ({"config.json": "{}"}, "cannot read the tokenizer"),
        ({"config.json": "{", "with tokenizer": ""}, "not a valid JSON file"),
        ({"config.json": '{"vocab_size": null}', "with tokenizer": ""}, "whole number as vocab_size, got None"),
    ],
)
def test_folders_that_are_no_models(tmp_path: Path, files: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if "with tokenizer" in files:
        byte_level().save_pretrained(folder)
    for name, content in files.items():
        if name != "with tokenizer":
            (folder / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        load(str(folder))
    with pytest.raises(ModelError, match="no such folder"):
        load(str(tmp_path / "modle"))
