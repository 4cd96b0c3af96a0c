# ruff: noqa: E501 - a line for each case
"""Every way to miss a shape is an error with its place, its field, and what should be there."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from dpolish.data.formats import FORMATS, SFT_FORMATS, Skipped
from dpolish.data.read import Fault
from dpolish.errors import DataError
from tests.data.shapes import OPEN, REGISTRIES, write

NAMES = {**dict.fromkeys(FORMATS, "preference"), **{f"sft {name}": "sft" for name in SFT_FORMATS}}


def message(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def turn(speaker: str, value: object, **more: object) -> dict[str, object]:
    return {"from": speaker, "value": value, **more}


HI, YES = message("user", "Hi"), message("assistant", "Yes")
NATIVE: dict[str, object] = {"prompt": "p", "chosen_response": "c", "rejected_response": "r"}
CHAT: dict[str, object] = {"prompt": [HI], "chosen_response": YES, "rejected_response": message("assistant", "r")}
TRL: dict[str, object] = {"prompt": [HI], "chosen": [YES], "rejected": [message("assistant", "r")]}
LISTS: dict[str, object] = {"chosen": [HI, YES], "rejected": [HI, message("assistant", "r")]}
UF: dict[str, object] = {"prompt": "Hi", **LISTS}
SWIFT: dict[str, object] = {"messages": [HI, YES], "rejected_response": "r"}
HH: dict[str, object] = {"chosen": "\n\nHuman: Hi\n\nAssistant: c", "rejected": "\n\nHuman: Hi\n\nAssistant: r"}
SHAREGPT: dict[str, object] = {
    "conversations": [turn("human", "Hi")],
    "chosen": turn("gpt", "c"),
    "rejected": turn("gpt", "r"),
}
ALPACA: dict[str, object] = {"instruction": "i", "chosen": "c", "rejected": "r"}
PKU: dict[str, object] = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0}
HS3: dict[str, object] = {"context": [HI], "response1": "a", "response2": "b", "overall_preference": 1}
ARENA: dict[str, object] = {
    "conversation_a": [HI, YES],
    "conversation_b": [HI, message("assistant", "r")],
    "winner": "model_a",
}
EVAL: dict[str, object] = {"instruction": "i", "output_1": "a", "output_2": "b", "preference": 1}
SHP: dict[str, object] = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
RL: dict[str, object] = {"context": [HI], "completions": [{"rank": 0, "completion": [YES]}]}
NECTAR: dict[str, object] = {"prompt": "q", "answers": [{"answer": "a", "rank": 1}]}
RAW_UF: dict[str, object] = {"instruction": "i", "completions": [{"response": "a", "overall_score": 1}]}
HS2: dict[str, object] = {"prompt": "q", "response": "a", "helpfulness": 3}
KTO: dict[str, object] = {"prompt": "p", "completion": "c", "label": True}
KTO_CHAT: dict[str, object] = {"messages": [HI, YES], "label": True}
IO: dict[str, object] = {"input": "i", "output": "o"}
SAID: dict[str, object] = {"messages": [HI, YES]}
NEMO: dict[str, object] = {"mask": "User", "conversations": [turn("User", "Hi"), turn("Assistant", "c")]}


@dataclass(frozen=True)
class Bad:
    """A good row, what is changed in it, and words of the error behind `file:line: `."""

    name: str
    good: dict[str, object]
    change: dict[str, object]
    words: str


CORPUS = [
    # strings and messages
    Bad("native", NATIVE, {"prompt": 3}, "prompt: expected a string or a list of messages, got a number"),
    Bad("native", NATIVE, {"prompt": {"role": "user"}}, "prompt: expected a string or a list of messages, got an object"),
    Bad("native", NATIVE, {"prompt": ["Hi"]}, "prompt[0]: expected a message {role, content}, got a string"),
    Bad("native", NATIVE, {"chosen_response": 1}, "chosen_response: expected a string, as the prompt is, got a number"),
    Bad("native", NATIVE, {"rejected_response": ["r", "s"]}, "rejected_response: expected a string, as the prompt is, got"),
    Bad("native", NATIVE, {"chosen_response": YES}, "chosen_response: expected a string, as the prompt is, got an object"),
    Bad("native", NATIVE, {"chosen_reward": "1"}, "chosen_reward: expected a finite number, got a string"),
    Bad("native", NATIVE, {"chosen_reward": True}, "chosen_reward: expected a finite number, got a boolean"),
    Bad("native", NATIVE, {"rejected_reward": [1]}, "rejected_reward: expected a finite number, got a list"),
    Bad("native", NATIVE, {"margin": "wide"}, "margin: expected a finite number, got a string"),
    Bad("native", NATIVE, {"system": "Be kind."}, "system: a prompt that is a string is used to the letter"),
    Bad("native", NATIVE, {"tools": '[{"name": "f"}]'}, "tools: a prompt that is a string is used to the letter"),
    Bad("native", NATIVE, {"images": ["a.png"]}, "images: pictures and sound cannot be trained on"),
    Bad("native", CHAT, {"image": {"path": "a.png", "bytes": None}}, "image: pictures and sound cannot be trained on"),
    Bad("native", CHAT, {"audio": "a.wav"}, "audio: pictures and sound cannot be trained on"),
    Bad("native", CHAT, {"video": ["a.mp4"]}, "video: pictures and sound cannot be trained on"),
    Bad("native", CHAT, {"system": 3}, "system: expected a string, got a number"),
    Bad("native", CHAT, {"tools": "[{"}, "tools: expected JSON in this string"),
    Bad("native", CHAT, {"tools": {"name": "f"}}, "tools: expected a list of objects, or one as JSON in a string, got an object"),
    Bad("native", CHAT, {"tools": ["f"]}, "tools: expected a list of objects, or one as JSON in a string, got others"),
    Bad("native", CHAT, {"chat_template_kwargs": [1]}, "chat_template_kwargs: expected an object, got a list"),
    Bad("native", CHAT, {"chosen_response": "c"}, "chosen_response: expected a message, as the prompt is of messages, got"),
    Bad("native", CHAT, {"rejected_response": HI}, "rejected_response: an answer is the assistant's, got the role 'user'"),
    Bad("native", CHAT, {"chosen_response": [message("user", "?"), YES]}, "an answer begins with the assistant's message"),
    Bad("native", CHAT, {"chosen_response": [YES, message("user", "?")]}, "an answer ends with the assistant's message"),
    Bad("native", CHAT, {"chosen_response": []}, "chosen_response: expected a message of the assistant, got an empty list"),
    Bad("native", CHAT, {"prompt": [HI, YES]}, "prompt: the last message is the assistant's, so there is nothing to answer"),
    Bad("native", CHAT, {"prompt": [message("usr", "Hi")]}, "prompt[0]: unknown role 'usr'. Did you mean 'user'?"),
    Bad("native", CHAT, {"prompt": [message("x" * 10**6, "Hi")]}, "prompt[0]: unknown role 'xxxxx"),
    Bad(
        "native",
        CHAT,
        {"prompt": [{"rol": "user", "content": "Hi"}]},
        "prompt[0]: no role in this message; its keys are rol, content. Did you mean 'role'?",
    ),
    Bad("native", CHAT, {"prompt": [{"role": "user"}]}, "prompt[0]: no content in this message; its keys are role."),
    Bad("native", CHAT, {"prompt": [message("user", None)]}, "prompt[0].content: expected a string, got null"),
    Bad("native", CHAT, {"prompt": [message("assistant", None, tool_calls=[]), HI]}, "prompt[0].content: expected a string"),
    Bad("native", CHAT, {"prompt": [{"role": ["user"], "content": ""}]}, "prompt[0].role: expected a string, got a list"),
    Bad(
        "native",
        CHAT,
        {"prompt": [message("user", [{"type": "text", "text": "a"}, {"type": "image", "image": "x"}])]},
        'prompt[0].content[1]: expected a part {"type": "text", "text": …}: only text can be trained on',
    ),
    Bad("native", CHAT, {"prompt": [message("user", ["a"])]}, "prompt[0].content[0]: expected a part"),
    Bad("native", CHAT, {"prompt": [message("user", "a", images=["x"])]}, "prompt[0]: images cannot be trained on: only text"),
    Bad(
        "native",
        CHAT,
        {"chosen_response": message("assistant", "", function_call={"name": "f"})},
        "chosen_response: function_call cannot be trained on: write tool_calls",
    ),
    Bad(
        "native",
        CHAT,
        {"chosen_response": message("assistant", "", tool_calls={"name": "f"})},
        "chosen_response.tool_calls: expected a list of objects, got an object",
    ),
    Bad(
        "native",
        CHAT,
        {"chosen_response": message("assistant", "", tool_calls=["f"])},
        "chosen_response.tool_calls: expected a list of objects, got others",
    ),
    Bad("native", CHAT, {"prompt": [message("tool", "x", tool_call_id=3)]}, "prompt[0].tool_call_id: expected a string, got"),
    Bad("trl", TRL, {"rejected": "r"}, "rejected: expected a message, as the prompt is of messages, got a string"),
    Bad("trl", TRL, {"score_chosen": 1.0}, "score_rejected: expected a finite number, got nothing; the keys here are prompt,"),
    Bad("trl", TRL, {"score_chosen": 1.0, "score_rejected": None}, "score_rejected: expected a finite number, got null"),
    Bad("trl", TRL, {"chosen-rating": "5", "rejected-rating": "2"}, "chosen-rating: expected a finite number, got a string"),
    # conversations
    Bad("implicit", LISTS, {"rejected": [message("user", "Ho"), YES]}, "rejected: differs from chosen in message 1 already"),
    Bad("implicit", LISTS, {"rejected": [HI, message("user", "?"), YES]}, "both need the same prompt"),
    Bad("implicit", LISTS, {"chosen": [HI]}, "chosen: a conversation ends with the assistant's answer, and its last turn has the role 'user'"),
    Bad("implicit", LISTS, {"rejected": []}, "rejected: a conversation ends with the assistant's answer, and it is empty"),
    Bad("implicit", LISTS, {"rejected": "r"}, "rejected: expected a list of messages, got a string"),
    Bad("binarized", UF, {"prompt": "Something else"}, "prompt: is none of the user's turns that chosen and rejected share"),
    Bad("binarized", UF, {"rejected": [YES]}, "rejected: differs from chosen in message 1 already"),
    Bad("swift", SWIFT, {"messages": [HI]}, "messages: an answer is the assistant's, got the role 'user'"),
    Bad("swift", SWIFT, {"messages": []}, "messages: expected a message of the assistant, got an empty list"),
    Bad("swift", SWIFT, {"messages": [HI, YES, YES]}, "messages: the last message is the assistant's, so there is nothing"),
    Bad("swift", SWIFT, {"rejected_response": ["r"]}, "rejected_response: expected a string, got a list"),
    Bad("swift", SWIFT, {"rejected_messages": "r"}, "rejected_messages: expected a list of messages, got a string"),
    Bad("hh", HH, {"chosen": "Hi"}, "chosen: expected a text that begins with 'Human:', got 'Hi'"),
    Bad("hh", HH, {"chosen": "\n\nAssistant: c"}, "chosen: expected a text that begins with 'Human:', got 'Assistant: c'"),
    Bad("hh", HH, {"chosen": ""}, "chosen: expected a text that begins with 'Human:', got ''"),
    Bad("hh", HH, {"rejected": "\n\nHuman: Hi"}, "rejected: a conversation ends with the assistant's answer, and its last"),
    Bad("hh", HH, {"rejected": "\n\nHuman: Ho\n\nAssistant: r"}, "rejected: differs from chosen in message 1 already"),
    Bad("hh", HH, {"rejected": ["\n\nHuman: Ho"]}, "rejected: expected a string, got a list"),
    Bad("sharegpt", SHAREGPT, {"conversations": "Hi"}, "conversations: expected a list of turns, got a string"),
    Bad("sharegpt", SHAREGPT, {"conversations": ["Hi"]}, "conversations[0]: expected a turn {from, value}, got a string"),
    Bad(
        "sharegpt",
        SHAREGPT,
        {"conversations": [turn("humann", "x")]},
        "conversations[0]: unknown speaker 'humann'. Did you mean 'human'?",
    ),
    Bad("sharegpt", SHAREGPT, {"conversations": [turn("human", 3)]}, "conversations[0].value: expected a string, got a number"),
    Bad(
        "sharegpt",
        SHAREGPT,
        {"conversations": [turn("human", "a"), turn("gpt", "b")]},
        "conversations: the last message is the assistant's",
    ),
    Bad(
        "sharegpt",
        SHAREGPT,
        {"conversations": [turn("human", "a"), turn("function_call", "f()"), turn("tool", "x")]},
        "conversations[1].value: expected JSON in this string",
    ),
    Bad(
        "sharegpt",
        SHAREGPT,
        {"conversations": [turn("human", "a"), turn("function_call", '{"nam": 1}'), turn("tool", "x")]},
        'conversations[1].value: expected the JSON of a call {"name": …',
    ),
    Bad("sharegpt", SHAREGPT, {"chosen": "c"}, "chosen: expected a turn {from, value}, got a string"),
    Bad("sharegpt", SHAREGPT, {"rejected": turn("human", "c")}, "rejected: an answer is the assistant's, got the role 'user'"),
    # questions and texts
    Bad("alpaca", ALPACA, {"instruction": 1}, "instruction: expected a string, got a number"),
    Bad("alpaca", ALPACA, {"input": ["x"]}, "input: expected a string, got a list"),
    Bad("alpaca", ALPACA, {"chosen": turn("gpt", "c")}, "chosen: expected a string, got an object"),
    Bad("alpaca", ALPACA, {"history": "x"}, "history: expected a list of pairs [question, answer], got a string"),
    Bad("alpaca", ALPACA, {"history": [["q"]]}, "history[0]: expected a pair [question, answer], got a list"),
    Bad("alpaca", ALPACA, {"history": [["q", "a"], {"q": "a"}]}, "history[1]: expected a pair [question, answer], got an object"),
    Bad("orca", {"question": "q", "chosen": "c", "rejected": "r"}, {"question": ["q"]}, "question: expected a string, got a list"),
    Bad("orca", {"input": "q", "chosen": "c", "rejected": "r"}, {"input": 1}, "input: expected a string, got a number"),
    Bad(
        "argilla",
        {"instruction": "i", "chosen_response": "c", "rejected_response": "r"},
        {"chosen_response": YES},
        "chosen_response: expected a string, got an object",
    ),
    Bad(
        "stack_exchange",
        {"question": "q", "response_j": "c", "response_k": "r"},
        {"response_k": 0},
        "response_k: expected a string, got a number",
    ),
    # verdicts
    Bad("pku", PKU, {"better_response_id": 2}, "better_response_id: expected one of 0, 1, got 2"),
    Bad("pku", PKU, {"better_response_id": True}, "better_response_id: expected one of 0, 1, got a boolean"),
    Bad("pku", PKU, {"better_response_id": "response_1"}, "better_response_id: expected one of 0, 1, got response_1"),
    Bad("helpsteer3", HS3, {"overall_preference": 4}, "overall_preference: expected a number from -3 to 3, got 4"),
    Bad("helpsteer3", HS3, {"overall_preference": "-1"}, "overall_preference: expected a finite number, got a string"),
    Bad("helpsteer3", HS3, {"context": "Hi"}, "context: expected a list of messages, got a string"),
    Bad("helpsteer3", HS3, {"context": [HI, YES]}, "context: the last message is the assistant's"),
    Bad("arena", ARENA, {"winner": "model_c"}, "winner: expected one of model_a, model_b, tie, tie (bothbad), both_bad, got model_c. Did"),
    Bad("arena", ARENA, {"winner": 1}, "winner: expected one of model_a, model_b"),
    Bad("arena", ARENA, {"conversation_b": [message("user", "Ho"), YES]}, "conversation_b: differs from conversation_a in message 1"),
    Bad("alpaca_eval", EVAL, {"preference": 3}, "preference: expected a number from 1 to 2, or 0 for a tie, got 3"),
    Bad("alpaca_eval", EVAL, {"preference": 0.5}, "preference: expected a number from 1 to 2, or 0 for a tie, got 0.5"),
    Bad("shp", SHP, {"labels": 2}, "labels: expected one of 1, 0, got 2"),
    Bad("shp", SHP, {"score_A": 3}, "score_B: expected a finite number, got nothing"),
    # several answers
    Bad("nemo_rl", RL, {"completions": []}, "completions: expected answers, got an empty list"),
    Bad("nemo_rl", RL, {"completions": {"rank": 0}}, "completions: expected a list of answers, got an object"),
    Bad("nemo_rl", RL, {"completions": [[YES]]}, "completions[0]: expected an object, got a list"),
    Bad("nemo_rl", RL, {"completions": [{"completion": [YES]}]}, "completions[0].rank: expected a finite number, got nothing"),
    Bad("nemo_rl", RL, {"completions": [{"rank": None, "completion": [YES]}]}, "completions[0].rank: expected a finite number, got null"),
    Bad("nemo_rl", RL, {"completions": [{"rank": 0, "completion": [HI]}]}, "completions[0].completion: an answer is the assistant's"),
    Bad(
        "nemo_rl",
        RL,
        {"completions": [{"rank": 0, "completion": [YES], "reward": 1}, {"rank": 1, "completion": [YES]}]},
        "completions[1].reward: expected a finite number, got nothing",
    ),
    Bad("nectar", NECTAR, {"answers": [{"answer": "a", "rank": "1"}]}, "answers[0].rank: expected a finite number, got a string"),
    Bad("nectar", NECTAR, {"answers": [{"anser": "a", "rank": 1}]}, "answers[0].answer: expected a string, got nothing; the keys here are anser, rank. Did you mean 'answer'?"),
    Bad("nectar", NECTAR, {"prompt": "\n\nHuman: Hi\n\nAssistant: Yes"}, "prompt: the last message is the assistant's"),
    Bad("ultrafeedback", RAW_UF, {"completions": [{"response": "a", "overall_score": None}]}, "completions[0].overall_score: expected a finite number, got null"),
    Bad("ultrafeedback", RAW_UF, {"completions": [{"response": "a"}]}, "completions[0].overall_score: expected a finite number, got nothing"),
    Bad("ultrafeedback", RAW_UF, {"completions": [{"response": None, "overall_score": 1}]}, "completions[0].response: expected a string, got null"),
    Bad("helpsteer2", HS2, {"helpfulness": "3"}, "helpfulness: expected a finite number, got a string"),
    Bad("helpsteer2", HS2, {"prompt": "q\n<extra_id_1>Assistant\na"}, "prompt: the last message is the assistant's"),
    Bad("kto", KTO, {"label": "good"}, "label: expected true or false, got a string"),
    Bad("kto", KTO, {"label": 2}, "label: expected true or false, got 2"),
    Bad("kto", KTO, {"completion": [YES]}, "completion: expected a string, as the prompt is, got"),
    Bad("kto_messages", KTO_CHAT, {"messages": [HI]}, "messages: an answer is the assistant's, got the role 'user'"),
    Bad("kto_messages", KTO_CHAT, {"label": "good"}, "label: expected true or false, got a string"),
    # demonstrations
    Bad("sft input_output", IO, {"output": 3}, "output: expected a string, got a number"),
    Bad("sft input_output", IO, {"system": "s"}, "system: a prompt that is a string is used to the letter"),
    Bad("sft prompt_completion", {"prompt": "p", "completion": "c"}, {"completion": [YES]}, "completion: expected a string, as the prompt is"),
    Bad("sft prompt_completion", {"prompt": [HI], "completion": [YES]}, {"completion": [HI, HI]}, "completion: an answer is the assistant's, got"),
    Bad("sft text", {"text": "t"}, {"text": ["t"]}, "text: expected a string, got a list"),
    Bad("sft messages", SAID, {"messages": "Hi"}, "messages: expected a list of messages, got a string"),
    Bad("sft messages", SAID, {"messages": [HI, message("assistant", "c", weight=0.5)]}, "messages[1].weight: expected true or false, got 0.5"),
    Bad("sft messages", SAID, {"messages": [HI, message("assistant", "c", weight=1, loss=False)]}, "messages[1]: weight and loss contradict each other"),
    Bad("sft messages", SAID, {"messages": [HI, message("assistant", "c", train="yes")]}, "messages[1].train: expected true or false, got a string"),
    Bad("sft sharegpt", NEMO, {"mask": "Usr"}, "mask: unknown speaker 'Usr'. Did you mean 'user'?"),
    Bad("sft sharegpt", NEMO, {"mask": "System"}, "mask: no turn is by 'System'"),
    Bad("sft sharegpt", NEMO, {"type": "TEXT_TO_TEXT"}, "type: expected one of VALUE_TO_TEXT, TEXT_TO_VALUE, got TEXT_TO_TEXT. Did you mean"),
    Bad(
        "sft sharegpt",
        NEMO,
        {"type": "VALUE_TO_TEXT", "conversations": [turn("User", "Hi"), turn("Assistant", "c", label=9)]},
        "conversations[1].label: expected a string, got a number",
    ),
    Bad("sft sharegpt", NEMO, {"conversations": [{"from": "User"}]}, "conversations[0]: no value in this message; its keys are from."),
    Bad("sft sharegpt", NEMO, {"video": "a.mp4"}, "video: pictures and sound cannot be trained on"),
    Bad("sft alpaca", {"instruction": "i", "output": "o"}, {"output": None, "outputs": "o"}, "output is null here"),
    Bad("sft dolly", {"instruction": "i", "response": "o"}, {"context": ["x"]}, "context: expected a string, got a list"),
]  # fmt: skip


@pytest.mark.parametrize("bad", CORPUS, ids=lambda bad: f"{bad.name}-{', '.join(bad.change)}")
def test_a_wrong_field_is_named_with_its_line_and_what_it_should_be(tmp_path: Path, bad: Bad) -> None:
    path = write(tmp_path, bad.good, {**bad.good, **bad.change}, bad.good)
    kind = NAMES[bad.name]
    file = OPEN[kind](path)
    items = list(file.records())
    (error,) = [item for item in items if isinstance(item, DataError)]
    assert str(error).startswith(f"{path}:2: ")
    assert bad.words in str(error)
    assert len(str(error)) < 700
    assert file.format is REGISTRIES[kind][bad.name.removeprefix("sft ")]
    wheres = {item.where for item in items if not isinstance(item, DataError)}
    assert wheres <= {f"{path}:1", f"{path}:3"}
    assert wheres
    assert not any(isinstance(item, Fault) for item in items)


def test_the_corpus_is_large_and_has_every_shape() -> None:
    assert len(CORPUS) >= 100
    assert {bad.name for bad in CORPUS} == {*NAMES}


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", 1, "no rows here"),
        (b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n[1]\n', 2, "expected a JSON object, got a list"),
        (b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n{"prompt": "p"\n', 2, "not valid JSON"),
        (b'{"prompt": "p", "chosen": NaN, "rejected": "r"}\n', 1, "NaN is not JSON"),
        (b'\n\n{"a": 1}\n', 3, "no known row format"),
        (b'{"text": "a"}\n{"prompt": "p", "chosen": "c", "rejected": "r"}\n', 1, "no known row format"),
        (b"{}\n", 1, "no known row format; the fields are none."),
        (b'{"system": [[[[]]]], "prompt": [], "chosen": [], "rejected": []}\n', 1, "chosen: expected a message of the"),
    ],
)
def test_odd_files_have_their_line(tmp_path: Path, content: bytes, line: int, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    items = [item for item in OPEN["preference"](str(path)).records() if isinstance(item, Fault | DataError)]
    (item,) = items
    assert str(item).startswith(f"{path}:{line}:")
    assert words in str(item)


def test_a_tie_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path, {**HS3, "overall_preference": 0})
    (item,) = OPEN["preference"](path).records()
    assert isinstance(item, Skipped)
