"""Bad and odd files, and what must be found in each: every kind with the places of all its rows, and nothing else."""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import zstandard


@dataclass(frozen=True, slots=True)
class Case:
    """A file, and the findings in it."""

    name: str
    content: bytes
    finds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By kind the places, without the path: `:2`, `:2:14`, or empty for the file itself."""
    file: str = "rows.jsonl"
    task: str = "dpo"
    says: str = ""
    """Words in the detail of the first finding."""


def pair(
    prompt: object = "Why is the sky blue?", chosen: object = "Scattering.", rejected: object = "Paint."
) -> dict[str, object]:
    return {"prompt": prompt, "chosen_response": chosen, "rejected_response": rejected}


def rows(*values: object) -> bytes:
    return b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, object]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, object]:
    return {"role": "system", "content": text}


GOOD = pair()
OTHER = pair("Name a prime number between ten and twelve.", "Eleven.", "Twelve.")
THIRD = pair("Translate 'Haus' to English, please.", "House.", "Mouse.")
LONG = " ".join(f"word{number}" for number in range(60))

CASES = [
    Case("good", rows(GOOD, OTHER)),
    Case("good with CRLF", rows(GOOD, OTHER).replace(b"\n", b"\r\n")),
    Case("good with a mark", b"\xef\xbb\xbf" + rows(GOOD, OTHER)),
    Case("good with blank lines", b"\n" + rows(GOOD) + b"\n \n" + rows(OTHER) + b"\n"),
    Case("good without a last line end", rows(GOOD, OTHER)[:-1]),
    Case("good list", json.dumps([GOOD, OTHER]).encode(), file="rows.json"),
    Case("good list over lines", json.dumps([GOOD, OTHER], indent=2).encode(), file="rows.json"),
    Case("good gzip", gzip.compress(rows(GOOD, OTHER)), file="rows.jsonl.gz"),
    Case("good zstandard", zstandard.compress(rows(GOOD, OTHER)), file="rows.jsonl.zst"),
    Case("good messages", rows(pair([user("Hello")], assistant("Hi."), assistant("What?")))),
    # --- no rows, no file -------------------------------------------------------------------------------------------
    Case("empty", b"", {"malformed-row": [":1"]}),
    Case("blank lines", b"\n\n \n", {"malformed-row": [":1"]}),
    Case("empty list", b"[]", {"malformed-row": [":1"]}, file="rows.json"),
    # --- broken JSON ------------------------------------------------------------------------------------------------
    Case("no JSON", rows(GOOD) + b"hello\n" + rows(OTHER), {"malformed-row": [":2:1"]}),
    Case("truncated", rows(GOOD, OTHER)[:-20], {"malformed-row": [":2:101"]}, says="truncated"),
    Case("single quotes", rows(GOOD) + b"{'prompt': 'x'}\n", {"malformed-row": [":2:2"]}),
    Case("trailing comma", rows(GOOD) + b'{"prompt": "x",}\n', {"malformed-row": [":2:15"]}),
    Case("two rows on a line", rows(GOOD)[:-1] + rows(OTHER), {"malformed-row": [":1:100"]}),
    Case("CR alone", rows(GOOD, OTHER).replace(b"\n", b"\r"), {"malformed-row": [":1:101"]}, says="CR alone"),
    Case("NaN", rows(GOOD) + b'{"prompt": NaN}\n', {"malformed-row": [":2:12"]}, says="NaN"),
    Case("raw NUL", rows(GOOD) + b'{"prompt": "a\0b"}\n', {"malformed-row": [":2:14"]}, says="NUL"),
    Case("raw tab in a string", b'{"prompt": "a\tb"}\n', {"malformed-row": [":1:14"]}),
    Case("lone surrogate", b'{"prompt": "\\ud800"}\n', {"malformed-row": [":1:13"]}, says="other half"),
    Case("repeated key", b'{"prompt": "a", "prompt": "b"}\n', {"malformed-row": [":1"]}, says="stands twice"),
    Case("a list in JSONL", rows(GOOD, [GOOD]), {"malformed-row": [":2"]}, says="got a list"),
    Case("a string in JSONL", rows("a", GOOD), {"malformed-row": [":1"]}, says="got a string"),
    Case("a number in JSONL", rows(GOOD, 7), {"malformed-row": [":2"]}, says="got a number"),
    Case("null in JSONL", rows(GOOD, None), {"malformed-row": [":2"]}, says="got null"),
    Case("deep nesting", rows(GOOD) + b'{"a":' * 2000 + b"1" + b"}" * 2000 + b"\n", {"malformed-row": [":2:5122"]}),
    Case("unclosed list", b"[" + rows(GOOD)[:-1], {"malformed-row": [":1:2"]}, file="rows.json", says="not closed"),
    Case(
        "double comma", b'[{"a":1},,{"a":2}]', {"malformed-row": [":1:10"], "wrong-fields": [":1", ":1"]}, file="r.json"
    ),
    Case("text behind a list", b"[" + rows(GOOD)[:-1] + b"] x", {"malformed-row": [":1:103"]}, file="r.json"),
    Case("one object", json.dumps(GOOD, indent=1).encode(), {"malformed-row": [":1"]}, file="r.json"),
    # --- encodings --------------------------------------------------------------------------------------------------
    Case("Latin-1", rows(GOOD) + rows(pair("Un café")).decode().encode("latin-1"), {"not-utf8": [":2:19"]}),
    Case("UTF-16", rows(GOOD).decode().encode("utf-16"), {"not-utf8": [":1"]}, says="UTF-16"),
    Case("UTF-16 without a mark", rows(GOOD).decode().encode("utf-16-le"), {"not-utf8": [":1"]}, says="UTF-16LE"),
    Case("UTF-32", rows(GOOD).decode().encode("utf-32"), {"not-utf8": [":1"]}, says="UTF-32"),
    Case("cut gzip", gzip.compress(rows(GOOD, OTHER))[:-9], {"malformed-row": [":1"]}, says="truncated"),
    Case("replacement", rows(GOOD, pair("Un caf\ufffd")), {"replacement-character": [":2"]}, says="prompt: U+FFFD"),
    Case(
        "mojibake", rows(pair(chosen="It doesnâ€™t."), OTHER), {"mojibake": [":1"]}, says="chosen: 'â€™' at character 9"
    ),
    Case("mojibake of an accent", rows(OTHER, pair(rejected="CafÃ©")), {"mojibake": [":2"]}, says="rejected"),
    Case("capital with tilde is none", rows(pair("NÃO É AMANHÃ”"))),
    Case(
        "escaped NUL",
        rows(GOOD) + b'{"prompt": "a\\u0000b", "chosen_response": "c", "rejected_response": "r"}\n',
        {"control-character": [":2"]},
        says="U+0000",
    ),
    Case("escape sequence", rows(pair(rejected="\x1b[31mred")), {"control-character": [":1"]}, says="rejected: U+001B"),
    Case("C1", rows(pair("a\x92b")), {"control-character": [":1"]}),
    Case("tab and line ends are none", rows(pair("a\tb\r\nc"))),
    Case("mark in a text", rows(GOOD, pair("\ufeffHello")), {"byte-order-mark": [":2"]}, says="character 1"),
    Case(
        "all at once",
        rows(pair("\ufffd\ufeff\x01Ã©")),
        {"replacement-character": [":1"], "byte-order-mark": [":1"], "control-character": [":1"], "mojibake": [":1"]},
    ),
    # --- fields -----------------------------------------------------------------------------------------------------
    Case(
        "missing field",
        rows(GOOD, {"prompt": "x", "chosen_response": "y"}),
        {"wrong-fields": [":2"]},
        says="no rejected_response",
    ),
    Case("null field", rows(GOOD, pair(rejected=None)), {"wrong-fields": [":2"]}, says="rejected_response is null"),
    Case(
        "misspelt field",
        rows({"prompt": "x", "chosen_response": "y", "rejected_respond": "z"}),
        {"wrong-fields": [":1"]},
        says="Did you mean",
    ),
    Case("number for a text", rows(GOOD, pair(chosen=5)), {"wrong-fields": [":2"]}, says="chosen_response"),
    Case("messages for a string", rows(pair("x", assistant("y"), "z")), {"wrong-fields": [":1"]}),
    Case(
        "unknown role",
        rows(pair([{"role": "usr", "content": "x"}], assistant("y"), assistant("z"))),
        {"wrong-fields": [":1"]},
        says="usr",
    ),
    Case(
        "prompt ends with assistant",
        rows(pair([user("x"), assistant("y")], assistant("y"), assistant("z"))),
        {"wrong-fields": [":1"]},
    ),
    Case("answer by the user", rows(pair([user("x")], user("y"), assistant("z"))), {"wrong-fields": [":1"]}),
    Case(
        "message without content",
        rows(pair([{"role": "user"}], assistant("y"), assistant("z"))),
        {"wrong-fields": [":1"]},
    ),
    Case("reward is a text", rows({**GOOD, "chosen_reward": "high"}), {"wrong-fields": [":1"]}, says="chosen_reward"),
    Case("no known shape", rows({"a": 1}, {"a": 2}), {"wrong-fields": [":1", ":2"]}, says="no known row format"),
    Case("empty object", rows(GOOD, {}), {"wrong-fields": [":2"]}),
    Case(
        "two shapes",
        rows(GOOD, {"instruction": "x", "chosen": "y", "rejected": "z"}),
        {"wrong-fields": [":2"]},
        says="alpaca",
    ),
    Case("extra column", rows({**GOOD, "source": "web"}, OTHER), {"unused-columns": [""]}, says="source"),
    Case(
        "misspelt reward", rows({**GOOD, "chosen_rewards": 1.0}, OTHER), {"unused-columns": [""]}, says="chosen_reward"
    ),
    Case(
        "part of two",
        rows({"chosen": [user("x"), assistant("y")], "rejected": [user("q"), assistant("z")]}),
        {"prompts-differ": [":1"]},
        says="differs from chosen",
    ),
    Case(
        "HH that differs",
        rows({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}),
        {"prompts-differ": [":1"]},
    ),
    # --- what there is to learn -------------------------------------------------------------------------------------
    Case("empty prompt", rows(GOOD, pair("")), {"empty-prompt": [":2"]}),
    Case("blank prompt", rows(pair(" \n"), GOOD), {"empty-prompt": [":1"]}),
    Case(
        "no messages",
        rows(pair([], assistant("a"), assistant("b")), pair([user("x")], assistant("a"), assistant("b"))),
        {"empty-prompt": [":1"]},
    ),
    Case(
        "empty answer", rows(GOOD, pair(chosen="")), {"empty-answer": [":2"], "duplicate-prompt": [":2"]}, says="chosen"
    ),
    Case("blank answer", rows(GOOD, pair("x", rejected="\t\n ")), {"empty-answer": [":2"]}, says="rejected"),
    Case(
        "blank message",
        rows(pair([user("x")], assistant(" "), assistant("y")), pair([user("z")], assistant("a"), assistant("b"))),
        {"empty-answer": [":1"]},
    ),
    Case(
        "both empty",
        rows(GOOD, pair("x", "", "")),
        {"empty-answer": [":2"], "equal-answers": [":2"]},
        says="chosen and rejected",
    ),
    Case("equal answers", rows(GOOD, pair("x", "y", "y"), OTHER), {"equal-answers": [":2"]}),
    Case("equal but for a blank", rows(pair("x", "y", "y "))),
    Case("nothing left", rows(pair("x", "y", "y")), {"equal-answers": [":1"], "nothing-left": [""]}),
    Case(
        "tie",
        rows(
            {"prompt": "x", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 3},
            {"prompt": "y", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 1},
        ),
        {"no-pair": [":1"]},
        says="tie",
    ),
    Case(
        "only ties",
        rows({"prompt": "x", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 3}),
        {"no-pair": [":1"], "nothing-left": [""]},
    ),
    Case(
        "reward order",
        rows({**GOOD, "chosen_reward": 1, "rejected_reward": 2.5}, OTHER),
        {"reward-order": [":1"]},
        says="1 < 2.5",
    ),
    Case("equal rewards", rows({**GOOD, "chosen_reward": 1, "rejected_reward": 1}, OTHER)),
    # --- turns ------------------------------------------------------------------------------------------------------
    Case(
        "system late",
        rows(pair([user("x"), system("s")], assistant("a"), assistant("b"))),
        {"role-order": [":1"]},
        says="turn 2: system",
    ),
    Case(
        "two users",
        rows(pair([user("x"), user("y")], assistant("a"), assistant("b"))),
        {"role-order": [":1"]},
        says="turns 1 and 2: two by user",
    ),
    Case(
        "assistant first",
        rows(pair([system("s"), assistant("x"), user("y")], assistant("a"), assistant("b"))),
        {"role-order": [":1"]},
        says="turn 2: the assistant speaks first",
    ),
    Case(
        "roles in order",
        rows(pair([system("s"), user("x"), assistant("y"), user("z")], assistant("a"), assistant("b"))),
    ),
    Case(
        "parted early",
        rows(
            {"chosen": [user("x"), assistant("a"), user("q"), assistant("b")], "rejected": [user("x"), assistant("c")]}
        ),
        {"parted-early": [":1"]},
        says="within chosen",
    ),
    Case("human within a string", rows(GOOD, pair("x", "a\n\nHuman: b", "c")), {"parted-early": [":2"]}),
    # --- ends of turn -----------------------------------------------------------------------------------------------
    Case(
        "one without its end",
        rows(
            *(pair(f"p{LONG[:n]}", f"a{n}<|im_end|>", f"b{n}<|im_end|>\n") for n in range(5)),
            pair("z", "a<|im_end|>", "b"),
        ),
        {"missing-end-of-turn": [":6"]},
        says="<|im_end|>",
    ),
    Case("all without an end", rows(*(pair(f"p{LONG[:n]}", f"a{n}", f"b{n}") for n in range(5)))),
    # --- rows together ----------------------------------------------------------------------------------------------
    Case(
        "same row",
        rows(GOOD, OTHER, GOOD, GOOD),
        {"duplicate-row": [":3", ":4"], "duplicate-prompt": [":3", ":4"]},
        says=":1",
    ),
    Case("same prompt", rows(GOOD, pair(chosen="Rayleigh.")), {"duplicate-prompt": [":2"]}, says=":1"),
    Case(
        "nearly the same prompt",
        rows(GOOD, pair("  why is THE sky, blue")),
        {"near-duplicate-prompt": [":2"]},
        says=":1",
    ),
    Case("similar prompt", rows(pair(LONG), OTHER, pair(f"{LONG} more")), {"similar-prompt": [":3"]}, says=":1"),
    Case("unlike prompts", rows(pair(LONG), pair(" ".join(reversed(LONG.split()))))),
    Case(
        "contradiction",
        rows(GOOD, OTHER, pair(chosen="Paint.", rejected="Scattering.")),
        {"contradiction": [":1", ":3"], "duplicate-prompt": [":3"]},
        says=":3",
    ),
    Case("same answers, other prompts", rows(GOOD, pair("Other?", "Paint.", "Scattering."))),
    # --- demonstrations ---------------------------------------------------------------------------------------------
    Case("good demonstrations", rows({"input": "x", "output": "y"}, {"input": "z", "output": "w"}), task="sft"),
    Case(
        "empty output",
        rows({"input": "x", "output": ""}, {"input": "z", "output": "w"}),
        {"empty-answer": [":1"]},
        task="sft",
    ),
    Case(
        "empty turn",
        rows({"messages": [user("a"), assistant(""), user("b"), assistant("c")]}),
        {"empty-turn": [":1"]},
        task="sft",
        says="trained turn 1",
    ),
    Case(
        "nothing trained",
        rows({"messages": [user("a")]}, {"messages": [user("a"), assistant("b")]}),
        {"no-pair": [":1"]},
        task="sft",
    ),
    Case("a tail", rows({"messages": [user("a"), assistant("b"), user("c")]}), {"untrained-tail": [":1"]}, task="sft"),
    Case("texts have no prompt", rows({"text": "a b c"}, {"text": "d e f"}), task="sft"),
    Case("same text", rows({"text": "a b c"}, {"text": "a b c"}), {"duplicate-row": [":2"]}, task="sft"),
    Case(
        "same demonstration",
        rows({"input": "x", "output": "y"}, {"input": "x", "output": "y"}),
        {"duplicate-row": [":2"], "duplicate-prompt": [":2"]},
        task="sft",
    ),
    Case(
        "roles of a demonstration",
        rows({"messages": [user("a"), user("b"), assistant("c")]}),
        {"role-order": [":1"]},
        task="sft",
    ),
    Case(
        "one demonstration without its end",
        rows(*({"input": f"q{n}", "output": f"a{n}</s>"} for n in range(4)), {"input": "z", "output": "w"}),
        {"missing-end-of-turn": [":5"]},
        task="sft",
    ),
    Case("pairs as demonstrations", rows(GOOD), {"wrong-fields": [":1"]}, task="sft"),
]
