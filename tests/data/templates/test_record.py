"""Which template a model was trained with is written beside it, read back strictly, and compared."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from dpolish.data.templates import TemplateRecord, choose_template, describe_difference, load_template, save_template
from dpolish.data.templates.record import FILE_NAME
from dpolish.errors import ModelError
from tests.data.small_tokenizers import byte_level


def of(asked: str | None, prompt_template: str | None = None) -> TemplateRecord:
    return TemplateRecord.of(choose_template(byte_level(), asked), prompt_template)


NONE = TemplateRecord.of(None)


@pytest.mark.parametrize("record", [of(None), of("extra_id"), of("nemo"), of(None, "{input} {output}"), NONE])
def test_a_record_comes_back_as_it_was(record: TemplateRecord, tmp_path: Path) -> None:
    save_template(tmp_path, record)
    assert load_template(tmp_path) == record
    content = json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))
    assert sorted(content) == ["fingerprint", "name", "prompt_template", "source"]


def test_a_folder_without_a_record_has_none(tmp_path: Path) -> None:
    assert load_template(tmp_path) is None


def content(**changes: object) -> str:
    return json.dumps({**dataclasses.asdict(of("extra_id")), **changes})


BAD = {
    "no JSON": ("{", "Expecting"),
    "no object": ("[]", "expected an object with name, source, fingerprint, prompt_template"),
    "a field missing": ("{}", "expected an object"),
    "a field too many": (content(extra=1), "expected an object"),
    "a wrong type": (content(name=1), "name is not a string"),
    "null": (content(source=None), "source is not a string"),
    "a wrong template": (content(prompt_template=["x"]), "prompt_template is not a string"),
    "a changed source": (content(source="{{ x }}"), "the fingerprint is not that of the source"),
    "a field twice": ('{"name": "a", "name": "b"}', "a field stands in it twice"),
    "depth": ("[" * 100_000, "recursion"),
    "no text": (b"\xff\xfe", "decode"),
    "size": (b" " * ((1 << 21) + 1), "not a file of at most"),
}


@pytest.mark.parametrize(("written", "says"), BAD.values(), ids=BAD.keys())
def test_what_is_no_record_is_refused(written: str | bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(ModelError, match=rf"(?is){FILE_NAME}: not a record of the template.*{says}"):
        load_template(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE_NAME)
    with pytest.raises(ModelError, match="not a file of at most"):
        load_template(tmp_path)


def test_equal_templates_are_equal_whatever_their_names() -> None:
    record = of("extra_id")
    assert record.identity == dataclasses.replace(record, name="model").identity
    assert record.identity != of("nemo").identity
    assert of(None, "{input} {output}").identity == of("nemo", "{input} {output}").identity
    assert of(None, "{input} {output}").identity != of(None).identity
    assert of(None, "{input} {output}").identity != of(None, "{input}\n{output}").identity


def test_the_warning_shows_both() -> None:
    used, trained = of(None), of("extra_id")
    text = describe_difference(used, trained, dict(byte_level().special_tokens_map))
    assert "TEMPLATE IS NOT THE ONE" in text
    assert f"fine-tuned with  extra_id, sha256 {trained.fingerprint[:12]}" in text
    assert f"now              model, sha256 {used.fingerprint[:12]}" in text
    assert (
        repr("<extra_id_0>System\nBe brief.\n<extra_id_1>User\nWhich year?\n<extra_id_1>Assistant\n1215\n")[:-1] in text
    )
    assert "<|im_start|>system\\nBe brief.<|im_end|>\\n<|im_start|>user\\nWhich year?<|im_end|>" in text


def test_the_warning_knows_strings_and_templates_that_refuse() -> None:
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    source = refusal + "{{ bos_token }}{{ messages[0].content }}"
    chat = TemplateRecord("picky.jinja", source, "0" * 64)
    text = describe_difference(of(None, "Q: {input}\nA: {output}"), chat, {"bos_token": "<s>"})
    assert "then  '<s>Which year?'" in text
    assert "now   'Q: {input}\\nA: {output}'" in text
    hopeless = TemplateRecord("broken.jinja", "{% for", "0" * 64)
    text = describe_difference(NONE, hopeless)
    assert "cannot be shown: broken.jinja: the chat template has an error" in text
    assert "no template: texts as they stand in the rows" in text
    refuses = TemplateRecord("refuses.jinja", "{{ raise_exception('never') }}", "0" * 64)
    assert "cannot be shown: the chat template refuses these messages" in describe_difference(NONE, refuses)


@pytest.mark.parametrize(
    ("template", "expected"),
    [("{input} {output}", "Hi"), ("Q: {question}\nA:{output}", "Q: Hi\nA:"), ("{a}\n\n{b} end", "Hi\n\n")],
)
def test_a_prompt_is_put_before_its_answer(template: str, expected: str) -> None:
    assert TemplateRecord.of(None, template).prompt_before_answer(" Hi ") == expected


def test_a_prompt_fits_a_template_of_one_field() -> None:
    with pytest.raises(ModelError, match="fits only a template of one field"):
        TemplateRecord.of(None, "{a} {b} {output}").prompt_before_answer("Hi")
