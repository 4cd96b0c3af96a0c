"""Each shape of row is a pair, and each way to miss it is an error with place, field and remedy."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpolish.data.formats import FORMATS, ROLES, Fields, PairFile, detect
from dpolish.data.read import Fault, Row
from dpolish.errors import ConfigError, DataError
from dpolish.records import Message, PreferencePair, Prompt, Response

WHERE = "rows.jsonl:7"
USER, ANSWER = Message("user", "Hi"), Message("assistant", "Yes")


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def turn(speaker: str, value: object) -> dict[str, object]:
    return {"from": speaker, "value": value}


def pair(
    prompt: Prompt, chosen: Response, rejected: Response, rewards: tuple[float | None, float | None] = (None, None)
) -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, *rewards, WHERE)


def says(text: str) -> Message:
    return Message("assistant", text)


GOLDEN: dict[str, list[tuple[dict[str, object], PreferencePair]]] = {
    "native": [
        ({"prompt": "p", "chosen_response": "c", "rejected_response": "r"}, pair("p", "c", "r")),
        (
            {
                "prompt": "p",
                "chosen_response": "c",
                "rejected_response": "r",
                "chosen_reward": 3,
                "rejected_reward": -0.5,
            },
            pair("p", "c", "r", (3.0, -0.5)),
        ),
        (
            {"prompt": "", "chosen_response": "", "rejected_response": "", "chosen_reward": None, "rejected_reward": 0},
            pair("", "", "", (None, 0.0)),
        ),
        (
            {
                "prompt": [message("system", "Be kind."), message("user", "Hi")],
                "chosen_response": message("assistant", "c"),
                "rejected_response": [
                    message("assistant", [{"type": "text", "text": "r"}, {"type": "text", "text": "!"}])
                ],
            },
            pair((Message("system", "Be kind."), USER), says("c"), says("r!")),
        ),
        (
            {"prompt": [], "chosen_response": message("assistant", ""), "rejected_response": message("assistant", "r")},
            pair((), says(""), says("r")),
        ),
    ],
    "trl": [
        ({"prompt": "p", "chosen": "c", "rejected": "r", "chosen_reward": 1.5}, pair("p", "c", "r", (1.5, None))),
        (
            {
                "prompt": [message("user", "Hi"), message("assistant", "Hm"), message("user", "Hi")],
                "chosen": [message("assistant", "c")],
                "rejected": [message("assistant", "r")],
            },
            pair((USER, says("Hm"), USER), says("c"), says("r")),
        ),
    ],
    "alpaca": [
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3", "chosen": "c", "rejected": "r"},
            pair((Message("user", "Add.\n\n1, 2"),), says("c"), says("r")),
        ),
        (
            {"instruction": "Add.", "input": "", "chosen": "c", "rejected": "r"},
            pair((Message("user", "Add."),), says("c"), says("r")),
        ),
        (
            {"instruction": "Add.", "chosen": "c", "rejected": "r"},
            pair((Message("user", "Add."),), says("c"), says("r")),
        ),
        (
            {"instruction": "Add.", "input": None, "chosen": "c", "rejected": "r"},
            pair((Message("user", "Add."),), says("c"), says("r")),
        ),
    ],
    "sharegpt": [
        (
            {
                "conversations": [turn("system", "s"), turn("human", "Hi"), turn("gpt", "Hm"), turn("Human", "Hi")],
                "chosen": turn("gpt", "c"),
                "rejected": turn("GPT", "r"),
            },
            pair((Message("system", "s"), USER, says("Hm"), USER), says("c"), says("r")),
        ),
    ],
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_golden_rows_and_is_recognised(name: str) -> None:
    for value, expected in GOLDEN[name]:
        row = Row(WHERE, value)
        assert detect(row).name == name
        assert FORMATS[name].read(Fields(row)) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_without_a_required_key_is_refused(tmp_path: Path, name: str) -> None:
    value, _ = GOLDEN[name][0]
    for key in FORMATS[name].required:
        path = write(tmp_path, value, {k: v for k, v in value.items() if k != key}, value, {**value, key: None})
        first, second, third, fourth = PairFile(path).pairs()
        assert isinstance(first, PreferencePair)
        assert isinstance(third, PreferencePair)
        assert str(second).startswith(f"{path}:2: no {key} here; the fields are ")
        assert f"read as {name} (from {path}:1)" in str(second)
        assert str(fourth).startswith(f"{path}:4: {key} is null here; the fields are ")


@pytest.mark.parametrize("name", FORMATS)
def test_a_misspelt_key_gets_a_hint(tmp_path: Path, name: str) -> None:
    value, _ = GOLDEN[name][0]
    for key in FORMATS[name].required:
        wrong = {(k[:-1] if k == key else k): v for k, v in value.items()}
        _, second = PairFile(write(tmp_path, value, wrong)).pairs()
        assert f"{key[:-1]!r} is none of its fields. Did you mean {key!r}?" in str(second)
        (first,) = PairFile(write(tmp_path, wrong)).pairs()  # here no row says what the file is
        assert isinstance(first, DataError)
        assert "no known row format" in str(first)
        assert f"Did you mean {key!r}?" in str(first)


def write(folder: Path, *values: object) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


TRL = {"prompt": "p", "chosen": "c", "rejected": "r"}
NATIVE = {"prompt": "p", "chosen_response": "c", "rejected_response": "r"}
CHAT = {
    "prompt": [message("user", "Hi")],
    "chosen_response": message("assistant", "c"),
    "rejected_response": message("assistant", "r"),
}
HI, YES = message("user", "Hi"), message("assistant", "Yes")
SHAREGPT = {"conversations": [turn("human", "Hi")], "chosen": turn("gpt", "c"), "rejected": turn("gpt", "r")}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({**NATIVE, "prompt": 3}, "prompt: expected a string or a list of messages, got a number"),
        ({**NATIVE, "prompt": {"role": "user"}}, "prompt: expected a string or a list of messages, got an object"),
        ({**NATIVE, "prompt": ["Hi"]}, "prompt[0]: expected a message {role, content}, got a string"),
        ({**NATIVE, "chosen_response": 1}, "chosen_response: expected a string, as the prompt is, got a number"),
        ({**NATIVE, "rejected_response": ["r", "s"]}, "rejected_response: expected a string, as the prompt is, got"),
        ({**NATIVE, "chosen_response": YES}, "chosen_response: expected a string, as the prompt is, got an object"),
        ({**NATIVE, "chosen_reward": "1"}, "chosen_reward: expected a finite number, got a string"),
        ({**NATIVE, "chosen_reward": True}, "chosen_reward: expected a finite number, got a boolean"),
        ({**NATIVE, "rejected_reward": [1]}, "rejected_reward: expected a finite number, got a list"),
        ({**CHAT, "chosen_response": "c"}, "chosen_response: expected a message, as the prompt is of messages, got"),
        ({**CHAT, "rejected_response": HI}, "rejected_response: an answer is the assistant's, got the role 'user'"),
        (
            {**CHAT, "chosen_response": [message("user", "Hi"), message("assistant", "c")]},
            "chosen_response: expected one message of the assistant, got a list of 2",
        ),
        ({**CHAT, "chosen_response": []}, "chosen_response: expected one message of the assistant, got a list of 0"),
        (
            {**CHAT, "prompt": [message("user", "Hi"), message("assistant", "Yes")]},
            "prompt: the last message is the assistant's, so there is nothing to answer",
        ),
        ({**CHAT, "prompt": [message("usr", "Hi")]}, "prompt[0]: unknown role 'usr'. Did you mean 'user'?"),
        ({**CHAT, "prompt": [message("x" * 10**6, "Hi")]}, "prompt[0]: unknown role 'xxxxx"),
        (
            {**CHAT, "prompt": [{"rol": "user", "content": "Hi"}]},
            "prompt[0]: no role in this message; its keys are rol, content. Did you mean 'role'?",
        ),
        ({**CHAT, "prompt": [message("user", None)]}, "prompt[0].content: expected a string, got null"),
        ({**CHAT, "prompt": [{"role": ["user"], "content": ""}]}, "prompt[0].role: expected a string, got a list"),
        (
            {**CHAT, "prompt": [message("user", [{"type": "text", "text": "a"}, {"type": "image", "image": "x"}])]},
            'prompt[0].content[1]: expected a part {"type": "text", "text": …}: only text can be trained on',
        ),
        ({**CHAT, "prompt": [message("user", ["a"])]}, "prompt[0].content[0]: expected a part"),
        (
            {**CHAT, "chosen_response": {**message("assistant", ""), "tool_calls": [{"name": "f"}]}},
            "chosen_response: tool_calls cannot be trained on",
        ),
        ({**SHAREGPT, "conversations": "Hi"}, "conversations: expected a list of turns, got a string"),
        ({**SHAREGPT, "conversations": ["Hi"]}, "conversations[0]: expected a turn {from, value}, got a string"),
        (
            {**SHAREGPT, "conversations": [turn("humann", "x")]},
            "conversations[0]: unknown speaker 'humann'. Did you mean 'human'?",
        ),
        ({**SHAREGPT, "conversations": [turn("human", 3)]}, "conversations[0].value: expected a string, got a number"),
        (
            {**SHAREGPT, "conversations": [turn("human", "a"), turn("gpt", "b")]},
            "conversations: the last message is the assistant's",
        ),
        ({**SHAREGPT, "chosen": "c"}, "chosen: expected a turn {from, value}, got a string"),
        ({**SHAREGPT, "rejected": turn("human", "c")}, "rejected: an answer is the assistant's, got the role 'user'"),
        ({"instruction": 1, "chosen": "c", "rejected": "r"}, "instruction: expected a string, got a number"),
        ({"instruction": "i", "input": ["x"], "chosen": "c", "rejected": "r"}, "input: expected a string, got a list"),
        ({"instruction": "i", "chosen": turn("gpt", "c"), "rejected": "r"}, "chosen: expected a string, got an object"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_what_it_should_be(tmp_path: Path, value: dict[str, object], message: str) -> None:
    path = write(tmp_path, value)
    (error,) = PairFile(path).pairs()
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{path}:1: ")
    assert message in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_must_be_finite(reward: float) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:7: chosen_reward: expected a finite number, got (nan|inf|-inf)"):
        FORMATS["native"].read(Fields(Row(WHERE, {**NATIVE, "chosen_reward": reward})))


def test_all_rows_of_a_file_have_one_format(tmp_path: Path) -> None:
    path = write(tmp_path, TRL, NATIVE, TRL)
    first, second, third = PairFile(path).pairs()
    assert isinstance(first, PreferencePair)
    assert isinstance(third, PreferencePair)
    assert str(second) == (
        f"{path}:2: no chosen and no rejected here; the fields are prompt, chosen_response, rejected_response. "
        f"The file is read as trl (from {path}:1). The row looks like native, but a file has one format: "
        "put such rows into a file of their own."
    )


def test_a_bad_first_row_does_not_decide_the_format(tmp_path: Path) -> None:
    file = PairFile(write(tmp_path, {"x": 1}, NATIVE, NATIVE))
    first, *others = file.pairs()
    assert isinstance(first, DataError)
    assert all(isinstance(other, PreferencePair) for other in others)
    assert file.format is FORMATS["native"]
    assert file.num_rows == 3


def test_a_forced_format_needs_no_recognition(tmp_path: Path) -> None:
    both = {**TRL, "instruction": "i"}
    path = write(tmp_path, both, NATIVE)
    (undecided, _) = PairFile(path).pairs()
    assert "the row fits trl and alpaca; the fields are prompt, chosen, rejected, instruction. Say which" in str(
        undecided
    )
    first, second = PairFile(path, "trl").pairs()
    assert isinstance(first, PreferencePair)
    assert first.prompt == "p"
    assert "read as trl (from model.data.format)" in str(second)
    with pytest.raises(ConfigError, match=r"unknown row format 'trll'. Did you mean 'trl'"):
        PairFile(path, "trll")


def test_unused_columns_are_named_once_with_a_hint(tmp_path: Path) -> None:
    chat = {**CHAT, "prompt": [{**message("user", "Hi"), "name": "Eve", "tool_calls": None}, message("user", "x")]}
    file = PairFile(write(tmp_path, {**NATIVE, "id": 1, "chosen_rewards": 2.0}, {**chat, "source": "web", "id": 2}))
    assert all(isinstance(item, PreferencePair) for item in file.pairs())
    assert list(file.extra_columns) == [
        "id",
        "chosen_rewards (Did you mean 'chosen_reward'?)",
        "source",
        "prompt[].name",
    ]
    known = PairFile(write(tmp_path, GOLDEN["alpaca"][0][0]))
    assert len(list(known.pairs())) == 1
    assert not known.extra_columns


def test_faults_of_the_file_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(TRL) + "\n{\n")
    file = PairFile(str(path))
    first, second = file.pairs()
    assert isinstance(first, PreferencePair)
    assert isinstance(second, Fault)
    assert file.num_rows == 2


def test_monstrous_keys_make_short_messages_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, {"x" * 10**6: 1, **{f"key{index}": 0 for index in range(10_000)}})
    (error,) = PairFile(path).pairs()
    assert isinstance(error, DataError)
    assert len(str(error)) < 1000


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_any_value_in_any_field_is_a_pair_or_a_data_error(name: str, data: st.DataObject) -> None:
    value, _ = GOLDEN[name][-1]
    key = data.draw(st.sampled_from([*FORMATS[name].required, *FORMATS[name].optional]))
    try:
        found = FORMATS[name].read(Fields(Row(WHERE, {**value, key: data.draw(values | st.sampled_from(ROLES))})))
    except DataError as error:
        assert str(error).startswith(f"{WHERE}: ")  # noqa: PT017 - both outcomes are right
    else:
        assert isinstance(found.prompt, str) == isinstance(found.chosen, str) == isinstance(found.rejected, str)


SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data beside the checkout, ../shared/data")


@needs_shared
def test_alpaca_rows_are_the_pairs_of_the_message_rows() -> None:
    def content(name: str) -> list[tuple[Prompt, Response, Response]]:
        pairs = list(PairFile(str(SHARED / name)).pairs())
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
    assert all(isinstance(item, PreferencePair) for item in file.pairs())
    assert file.format is FORMATS[format]
    assert file.num_rows == rows
    assert not file.extra_columns
