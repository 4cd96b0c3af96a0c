"""Each shape of row says what its golden file says, is recognised, and belongs to one file with its like."""

import json
from pathlib import Path

import pytest

from dpolish.data.formats import (
    FORMATS,
    READ_REMARKS,
    ROLES,
    SCORED_AGAINST,
    SCORED_EQUALLY,
    SFT_FORMATS,
    SKIP_REASONS,
    TAIL,
    ConversationFile,
    Fields,
    PairFile,
    PromptTemplate,
    Skipped,
    detect,
    detect_any,
)
from dpolish.data.read import Fault, Row
from dpolish.data.summary import Tally
from dpolish.errors import ConfigError, DataError
from dpolish.records import Conversation, Message, PreferencePair, Prompt, Response
from tests.data.shapes import GOLDEN, OPEN, REGISTRIES, SHAPES, expected, golden_path, rows_of, write

WHERE = "rows.jsonl:7"
every_shape = pytest.mark.parametrize(("kind", "name"), SHAPES)


# Golden files


@every_shape
def test_golden_rows_say_what_they_should(kind: str, name: str) -> None:
    file = OPEN[kind](golden_path(kind, name))
    wanted = list(expected(kind, name))
    assert list(file.records()) == wanted
    assert file.format is REGISTRIES[kind][name]
    assert file.num_rows == len(rows_of(kind, name)) >= 2


def test_there_is_a_golden_file_for_each_shape_and_for_nothing_else() -> None:
    found = {(path.parent.name, path.stem) for path in GOLDEN.rglob("*.jsonl")}
    assert found == {*SHAPES}


@every_shape
def test_golden_rows_read_one_by_one_when_the_shape_is_given(kind: str, name: str, tmp_path: Path) -> None:
    for value in rows_of(kind, name):
        path = write(tmp_path, value)
        file = PairFile(path, name) if kind == "preference" else ConversationFile(path, name)
        assert not any(isinstance(item, Fault | DataError) for item in file.records())


@every_shape
def test_each_shape_says_what_it_is_and_shows_a_row_that_reads(kind: str, name: str, tmp_path: Path) -> None:
    shape = REGISTRIES[kind][name]
    assert shape.description.endswith(".")
    assert shape.seen
    assert bool(shape.needs) == (shape.when is not None)
    row = Row(WHERE, dict(shape.example))
    assert detect(row, REGISTRIES[kind]) is shape
    assert detect_any(row) == (kind, shape)
    assert not isinstance(shape.read(Fields(row)), Skipped)
    file = OPEN[kind](write(tmp_path, shape.example))
    assert not any(isinstance(item, Fault | DataError) for item in file.records())
    assert [*file.extra_columns] == []


def test_reasons_and_remarks_are_those_that_are_listed() -> None:
    reasons = {item.reason for kind, name in SHAPES for item in expected(kind, name) if isinstance(item, Skipped)}
    assert reasons == {*SKIP_REASONS}
    assert {SCORED_AGAINST, SCORED_EQUALLY, TAIL} == {*READ_REMARKS}


# Recognition


@every_shape
def test_a_row_without_a_required_key_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    value, shape = rows_of(kind, name)[0], REGISTRIES[kind][name]
    for key in shape.required:
        path = write(tmp_path, value, {k: v for k, v in value.items() if k != key}, value, {**value, key: None})
        faults = [item for item in OPEN[kind](path).records() if isinstance(item, DataError)]
        second, fourth = faults
        assert str(second).startswith(f"{path}:2: no {key} here; the fields are ")
        assert f"read as {name} (from {path}:1)" in str(second)
        assert str(fourth).startswith(f"{path}:4: {key} is null here; the fields are ")


@every_shape
def test_a_row_without_any_of_several_keys_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    value, shape = rows_of(kind, name)[0], REGISTRIES[kind][name]
    for keys in shape.one_of:
        path = write(tmp_path, value, {k: v for k, v in value.items() if k not in keys})
        *_, fault = [item for item in OPEN[kind](path).records() if isinstance(item, DataError)]
        assert str(fault).startswith(f"{path}:2: no {' or '.join(keys)} here; the fields are ")


@every_shape
def test_a_misspelt_key_gets_a_hint(tmp_path: Path, kind: str, name: str) -> None:
    value, shape = rows_of(kind, name)[0], REGISTRIES[kind][name]
    for key in shape.required:
        if len(key) < 5:  # `text` without its end is no longer near it
            continue
        wrong = {(k[:-1] if k == key else k): v for k, v in value.items()}
        *_, second = (item for item in OPEN[kind](write(tmp_path, value, wrong)).records() if not is_record(item))
        assert f"{key[:-1]!r} is none of its fields. Did you mean {key!r}?" in str(second) or "looks like" in str(
            second
        )
        if any(other.fits(wrong) for other in REGISTRIES[kind].values()):
            continue
        (first,) = OPEN[kind](write(tmp_path, wrong)).records()  # here no row says what the file is
        assert isinstance(first, DataError)
        assert "no known row format" in str(first)
        assert f"Did you mean {key!r}?" in str(first)


def is_record(item: object) -> bool:
    return isinstance(item, PreferencePair | Conversation | Skipped)


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


TRL = {"prompt": "p", "chosen": "c", "rejected": "r"}
NATIVE = {"prompt": "p", "chosen_response": "c", "rejected_response": "r"}
CHAT = {
    "prompt": [message("user", "Hi")],
    "chosen_response": message("assistant", "c"),
    "rejected_response": message("assistant", "r"),
}
LISTS = {
    "chosen": [message("user", "Hi"), message("assistant", "c")],
    "rejected": [message("user", "Hi"), message("assistant", "r")],
}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({**TRL, "score": 1}, "trl"),
        ({**LISTS, "prompt": "Hi"}, "binarized"),
        ({**LISTS, "prompt": [message("user", "Hi")]}, "trl"),
        ({**LISTS, "prompt": None}, "implicit"),
        ({**LISTS, "prompt": "Hi", "question": "Hi"}, "binarized"),
        ({**LISTS, "instruction": "Hi"}, "implicit"),
        ({**LISTS, "messages": LISTS["chosen"], "prompt_id": "1"}, "implicit"),
        ({"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c"}, "hh"),
        ({"instruction": "i", "input": "x", "chosen": "c", "rejected": "r", "system": "s"}, "alpaca"),
        ({"input": "x", "chosen": "c", "rejected": "r", "system": "s", "output": ""}, "orca"),
        ({"messages": LISTS["chosen"], "rejected_response": "r", "label": True}, "swift"),
        ({"prompt": "p", "completion": "c", "label": True, "messages": None}, "kto"),
    ],
)
def test_the_most_specific_shape_wins(value: dict[str, object], name: str) -> None:
    if name == "swift":  # a label beside it makes it two things
        with pytest.raises(DataError, match="the row fits swift and kto_messages"):
            detect(Row(WHERE, value))
        value = {key: field for key, field in value.items() if key != "label"}
    assert detect(Row(WHERE, value)).name == name
    assert detect_any(Row(WHERE, value))[0] == "preference"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"instruction": "i", "input": "x", "output": "o", "text": "t"}, "alpaca"),
        ({"input": "x", "output": "o", "text": "t"}, "input_output"),
        ({"prompt": "p", "completion": "c", "label": "sports"}, "prompt_completion"),
        ({"messages": LISTS["chosen"], "prompt": "Hi", "label": "sports"}, "messages"),
        ({"text": "t", "label": 1}, "text"),
        ({"instruction": "i", "context": "", "response": "r"}, "dolly"),
    ],
)
def test_demonstrations_are_told_apart(value: dict[str, object], name: str) -> None:
    kind, shape = detect_any(Row(WHERE, value))
    assert (kind, shape.name) == ("sft", name)


def test_a_row_of_no_kind_names_the_nearest_shapes_of_both() -> None:
    with pytest.raises(
        DataError, match=r"(?s)^rows.jsonl:7: no known row format; the fields are prompt, completion_.*"
    ):
        detect_any(Row(WHERE, {"prompt": "p", "completion_": "c"}))
    with pytest.raises(DataError, match=r"Did you mean 'completion'\?"):
        detect_any(Row(WHERE, {"prompt": "p", "completion_": "c"}))
    with pytest.raises(DataError, match=r"the row fits trl and alpaca"):
        detect_any(Row(WHERE, {**TRL, "instruction": "i"}))


def test_all_rows_of_a_file_have_one_format(tmp_path: Path) -> None:
    path = write(tmp_path, TRL, NATIVE, TRL)
    first, second, third = PairFile(path).records()
    assert isinstance(first, PreferencePair)
    assert isinstance(third, PreferencePair)
    assert str(second) == (
        f"{path}:2: no chosen and no rejected here; the fields are prompt, chosen_response, rejected_response. "
        f"The file is read as trl (from {path}:1). The row looks like native, but a file has one format: "
        "put such rows into a file of their own."
    )


def test_shapes_with_the_same_keys_do_not_mix_either(tmp_path: Path) -> None:
    path = write(tmp_path, TRL, {**LISTS, "prompt": "Hi"})
    _, second = PairFile(path).records()
    assert f"{path}:2: this is no row of that format (all strings, or all messages) here" in str(second)
    assert "The row looks like binarized" in str(second)


def test_a_bad_first_row_does_not_decide_the_format(tmp_path: Path) -> None:
    file = PairFile(write(tmp_path, {"x": 1}, NATIVE, NATIVE))
    first, *others = file.records()
    assert isinstance(first, DataError)
    assert all(isinstance(other, PreferencePair) for other in others)
    assert file.format is FORMATS["native"]
    assert file.num_rows == 3


def test_a_forced_format_needs_no_recognition(tmp_path: Path) -> None:
    both = {**TRL, "instruction": "i"}
    path = write(tmp_path, both, NATIVE)
    (undecided, _) = PairFile(path).records()
    fits = "the row fits trl and alpaca; the fields are prompt, chosen, rejected, instruction. Say which"
    assert fits in str(undecided)
    first, second = PairFile(path, "trl").records()
    assert isinstance(first, PreferencePair)
    assert first.prompt == "p"
    assert "read as trl (from model.data.format)" in str(second)
    with pytest.raises(ConfigError, match=r"unknown row format 'trll'. Did you mean 'trl'"):
        PairFile(path, "trll")
    with pytest.raises(ConfigError, match=r"unknown SFT row format 'textt'. Did you mean 'text'"):
        ConversationFile(path, "textt")


def test_unused_columns_are_named_once_with_a_hint(tmp_path: Path) -> None:
    chat = {**CHAT, "prompt": [{**message("user", "Hi"), "score": 1, "tool_calls": None}, message("user", "x")]}
    file = PairFile(write(tmp_path, {**NATIVE, "id": 1, "chosen_rewards": 2.0}, {**chat, "source": "web", "id": 2}))
    assert all(isinstance(item, PreferencePair) for item in file.records())
    hinted = "chosen_rewards (Did you mean 'chosen_reward'?)"
    assert [*file.extra_columns] == ["id", hinted, "source", "prompt[].score"]
    known = PairFile(golden_path("preference", "alpaca"))
    assert len(list(known.records())) == 3
    assert not known.extra_columns


def test_faults_of_the_file_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(TRL) + "\n{\n")
    file = PairFile(str(path))
    first, second = file.records()
    assert isinstance(first, PreferencePair)
    assert isinstance(second, Fault)
    assert file.num_rows == 2


def test_monstrous_keys_make_short_messages_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, {"x" * 10**6: 1, **{f"key{index}": 0 for index in range(10_000)}})
    for file in (PairFile(path), ConversationFile(path)):
        (error,) = file.records()
        assert isinstance(error, DataError)
        assert len(str(error)) < 1000


# Rewards


def test_odd_rewards_are_kept_and_remarked(tmp_path: Path) -> None:
    against = {**LISTS, "score_chosen": 1, "score_rejected": 2}
    file = PairFile(write(tmp_path, against, {**against, "score_chosen": 3}, against))
    first, second, third = file.records()
    assert isinstance(first, PreferencePair)
    assert (first.chosen_reward, first.rejected_reward) == (1.0, 2.0)
    assert isinstance(second, PreferencePair)
    assert isinstance(third, PreferencePair)
    assert file.remarks == {SCORED_AGAINST: Tally(2, (f"{file.path}:1", f"{file.path}:3"))}
    file = PairFile(golden_path("preference", "native"))
    list(file.records())
    assert file.remarks == {SCORED_EQUALLY: Tally(1, (f"{file.path}:5",))}


def test_rewards_come_before_scores_and_scores_before_the_margin() -> None:
    def rewards(**fields: float) -> object:
        pair = FORMATS["trl"].read(Fields(Row(WHERE, {**TRL, **fields})))
        assert isinstance(pair, PreferencePair)
        return pair.chosen_reward, pair.rejected_reward

    assert rewards(margin=3) == (3.0, 0.0)
    assert rewards(margin=3, score_chosen=7, score_rejected=5) == (7.0, 5.0)
    assert rewards(margin=3, score_chosen=7, score_rejected=5, chosen_reward=1) == (1.0, None)
    assert rewards(chosen_reward=2, rejected_reward=2, margin=0) == (2.0, 2.0)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["chosen_reward", "margin", "score_chosen"])
def test_a_reward_must_be_finite(key: str, reward: float) -> None:
    with pytest.raises(DataError, match=rf"rows.jsonl:7: {key}: expected a finite number, got (nan|inf|-inf)"):
        FORMATS["native"].read(Fields(Row(WHERE, {**NATIVE, key: reward})))


# Messages


def test_every_role_of_the_templates_is_read() -> None:
    value = {**CHAT, "prompt": [message(role, role) for role in ROLES] + [message("user", "Hi")]}
    pair = FORMATS["native"].read(Fields(Row(WHERE, value)))
    assert isinstance(pair, PreferencePair)
    assert pair.prompt == (*(Message(role, role) for role in ROLES), Message("user", "Hi"))


def test_further_fields_of_a_message_stand_in_one_order_with_their_own_inside() -> None:
    fields = {
        "thinking": "t",
        "name": "n",
        "reasoning_content": "r",
        "tool_call_id": "i",
        "tool_calls": [{"b": 1, "a": 2}],
    }
    value = {**CHAT, "prompt": [{**fields, **message("tool", "x")}]}
    pair = FORMATS["native"].read(Fields(Row(WHERE, value)))
    assert isinstance(pair, PreferencePair)
    assert isinstance(pair.prompt, tuple)
    more = '{"tool_calls":[{"b":1,"a":2}],"tool_call_id":"i","name":"n","reasoning_content":"r","thinking":"t"}'
    assert pair.prompt[0].more == more


def test_a_system_message_is_not_put_in_front_twice(tmp_path: Path) -> None:
    led = {**CHAT, "prompt": [message("system", "s"), message("user", "Hi")]}
    (pair,) = PairFile(write(tmp_path, {**led, "system": "s"})).records()
    assert isinstance(pair, PreferencePair)
    assert pair.prompt == (Message("system", "s"), Message("user", "Hi"))
    (error,) = PairFile(write(tmp_path, {**led, "system": "t"})).records()
    assert "system: the messages begin with another system message already" in str(error)
    (demonstration,) = ConversationFile(
        write(tmp_path, {"system": "s", "messages": [*led["prompt"], message("assistant", "c")]})
    ).records()
    assert isinstance(demonstration, Conversation)
    assert demonstration.trained == (False, False, True)


# Demonstrations


@pytest.mark.parametrize(
    ("template", "label", "row", "pieces"),
    [
        ("Q: {q}\\nA: {answer}", "answer", {"q": "hi", "answer": "yes"}, ("Q: hi\nA:", " yes")),
        ("{a}{b} {output} end {c}", "output", {"a": "1", "b": "2", "c": "3", "output": "x"}, ("12", " x end 3")),
        ("{output}", "output", {"output": " x "}, ("", "x")),
        ("\\ud800{output}", "output", {"output": "half a character is none"}, ("\\ud800", "half a character is none")),
        ("Q {a}  {output}", "output", {"a": "", "output": "x"}, ("Q ", "  x")),
        ("\\x11User\\n{q}\\n\\u00e9é{output}", "output", {"q": "q", "output": "x"}, ("\x11User\nq\néé", "x")),
        ("{instruction}\n{output}", "output", {"instruction": "i", "output": "o"}, ("i\n", "o")),
        ("{system}{q}{output}", "output", {"system": "s", "q": "q", "output": "o"}, ("sq", "o")),
    ],
)
def test_a_prompt_template_is_filled(
    tmp_path: Path, template: str, label: str, row: dict[str, str], pieces: tuple[str, str]
) -> None:
    file = ConversationFile(write(tmp_path, row), prompt_template=template, label_key=label)
    (demonstration,) = file.records()
    assert isinstance(demonstration, Conversation)
    assert (demonstration.pieces, demonstration.trained) == (pieces, (False, True))
    assert file.format is not None
    assert file.format.name == "input_output"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{input} {outputs}", "the label {output} does not stand in it. Did you mean 'outputs'?"),
        ("{input}", "the label {output} does not stand in it"),
        ("{input} {output} {output}", "the label {output} stands in it twice"),
        ("{} {output}", "braces with nothing in them"),
    ],
)
def test_a_template_without_its_label_is_refused(template: str, what: str) -> None:
    with pytest.raises(ConfigError, match="prompt_template") as error:
        ConversationFile("rows.jsonl", prompt_template=template)
    assert what in str(error.value)


def test_rows_that_lack_a_field_of_the_template_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"q": "hi", "output": "yes"}, {"q": "hi", "outptu": "yes"}, {"q": 3, "output": "x"})
    _, second, third = ConversationFile(path, prompt_template="{q} {output}").records()
    assert str(second).startswith(f"{path}:2: no output here; the fields are q, outptu.")
    assert "Did you mean 'output'?" in str(second)
    assert str(third) == f"{path}:3: q: expected a string, got a number"


def test_a_template_leaves_rows_of_other_shapes_alone(tmp_path: Path) -> None:
    chat = {"messages": LISTS["chosen"]}
    file = ConversationFile(write(tmp_path, chat), prompt_template="{q} {output}")
    assert [type(item) for item in file.records()] == [Conversation]
    assert file.format is SFT_FORMATS["messages"]
    forced = ConversationFile(write(tmp_path, chat), "input_output", prompt_template="{q} {output}")
    (error,) = forced.records()
    assert "no q and no output here" in str(error)


def test_the_default_template_is_nemos() -> None:
    assert PromptTemplate.of("{input} {output}", "output").keys == ("input", "output")


def test_only_the_last_turn_is_trained_on_when_asked(tmp_path: Path) -> None:
    turns = [*LISTS["chosen"], message("user", "On"), message("assistant", "c2")]
    (whole,) = ConversationFile(write(tmp_path, {"messages": turns})).records()
    (last,) = ConversationFile(write(tmp_path, {"messages": turns}), trained_turns="last").records()
    assert isinstance(whole, Conversation)
    assert isinstance(last, Conversation)
    assert whole.pieces == last.pieces
    assert whole.trained == (False, True, False, True)
    assert last.trained == (False, False, False, True)


def test_a_tail_that_is_not_trained_on_is_left_out_and_remarked(tmp_path: Path) -> None:
    file = ConversationFile(write(tmp_path, {"messages": [*LISTS["chosen"], message("user", "Bye")]}))
    (demonstration,) = file.records()
    assert isinstance(demonstration, Conversation)
    assert [piece.content for piece in demonstration.pieces if isinstance(piece, Message)] == ["Hi", "c"]
    assert file.remarks == {TAIL: Tally(1, (f"{file.path}:1",))}


# Documentation


def test_the_tables_of_the_documentation_have_every_shape_with_its_fields() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for registry, heading in ((FORMATS, "Preference rows"), (SFT_FORMATS, "SFT rows")):
        part = text.split(f"\n## {heading}\n")[1].split("```")[0]
        rows = {line.split("|")[1].strip(" `"): line for line in part.splitlines() if line.startswith("| `")}
        assert [*rows] == [*registry]
        for name, shape in registry.items():
            for key in (*shape.required, *(key for keys in shape.one_of for key in keys)):
                assert f"`{key}`" in rows[name], (name, key)


# Real data

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data beside the checkout, ../shared/data")


@needs_shared
def test_alpaca_rows_are_the_pairs_of_the_message_rows() -> None:
    def content(name: str) -> list[tuple[Prompt, Response, Response]]:
        pairs = list(PairFile(str(SHARED / name)).records())
        return [(p.prompt, p.chosen, p.rejected) for p in pairs if isinstance(p, PreferencePair)]

    as_lists = content("politeness_pairs.json")
    as_messages = content("politeness_train.jsonl") + content("politeness_valid.jsonl")
    assert len(as_lists) == 1100
    assert sorted(map(repr, as_lists)) == sorted(map(repr, as_messages))


@needs_shared
@pytest.mark.parametrize(
    ("name", "format", "rows"),
    [
        ("politeness_train.jsonl", "native", 1000),
        ("politeness_valid.jsonl", "native", 100),
        ("politeness_pairs.json", "alpaca", 1100),
        ("conversations_pairs.json", "sharegpt", 300),
    ],
)
def test_real_files_are_recognised_whole(name: str, format: str, rows: int) -> None:
    file = PairFile(str(SHARED / name))
    assert all(isinstance(item, PreferencePair) for item in file.records())
    assert file.format is FORMATS[format]
    assert file.num_rows == rows
    assert not file.extra_columns
