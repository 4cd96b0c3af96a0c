"""Shapes of preference rows with two answers: which one is better is said by their names, or by a field beside them."""

import re
from collections.abc import Mapping

from dpolish.data.formats.answers import TIE, Skipped
from dpolish.data.formats.fields import Fields, short
from dpolish.data.formats.messages import (
    answer,
    assistant,
    before_answer,
    by_assistant,
    marked_turns,
    messages,
    prompt,
    split,
    turn,
    turns,
    user,
)
from dpolish.data.formats.shape import row_format
from dpolish.data.read import json_type
from dpolish.records import Message, PreferencePair, Prompt, Response

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)
REWARDS = ("chosen_reward", "rejected_reward", *(key for keys in _SCORES for key in keys), "margin")
"""Fields that say how much better one answer is: rewards as they stand, scores of both answers, or their difference."""

_MODELS = ("chosen_model", "rejected_model", "chosen-model", "rejected-model")


def scored(row: Fields, asked: Prompt, chosen: Response, rejected: Response) -> PreferencePair | Skipped:
    """The pair with its rewards. Equal scores are a tie; rewards (`chosen_reward`) are taken as they stand."""
    rewards = row.reward("chosen_reward"), row.reward("rejected_reward")
    if rewards == (None, None):
        if keys := next((keys for keys in _SCORES if any(map(row.has, keys))), None):
            rewards = row.number(keys[0]), row.number(keys[1])
        elif row.has("margin"):
            rewards = row.number("margin"), 0.0
        if rewards[0] is not None and rewards[0] == rewards[1]:
            return Skipped(row.where, TIE)
    return PreferencePair(asked, chosen, rejected, *rewards, row.where)


def decided(row: Fields, asked: Prompt, first: Response, second: Response, verdict: float) -> PreferencePair | Skipped:
    """The pair of two answers of which the first is better (a positive verdict) or the second; 0 is a tie."""
    if verdict == 0:
        return Skipped(row.where, TIE)
    chosen, rejected = (first, second) if verdict > 0 else (second, first)
    return PreferencePair(asked, chosen, rejected, None, None, row.where)


def instruction(row: Fields, key: str) -> tuple[Message, ...]:
    """What to do, and in `input` what with, as one message of the user, behind the turns of `history`."""
    given = row.text_or("input", "") if key != "input" else ""
    text = row.text(key)
    return (*_history(row), *user(f"{text}\n\n{given}" if given else text))


def _history(row: Fields) -> tuple[Message, ...]:
    found: list[Message] = []
    if not row.has("history"):
        return ()
    for index, item in enumerate(row.items("history", "pairs [question, answer]")):
        if not isinstance(item, list) or len(item) != 2 or not all(isinstance(text, str) for text in item):
            raise row.fail(f"history[{index}]", f"expected a pair [question, answer], got {json_type(item)}")
        found += (*user(item[0]), *assistant(item[1]))
    return tuple(found)


def _is_conversation(value: object) -> bool:
    """Whether a value is a list of messages that does not begin with the assistant's."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return str(value[0].get("role", value[0].get("from"))).lower() not in ("assistant", "gpt")


# Strings or messages, with a prompt of their own


@row_format(
    "native",
    "prompt",
    "chosen_response",
    "rejected_response",
    optional=REWARDS,
    seen="NeMo-Aligner",
    example={
        "prompt": "Question: who wrote Faust?\nAnswer:",
        "chosen_response": " Goethe",
        "rejected_response": " Schiller",
        "chosen_reward": 4.5,
        "rejected_reward": 1.0,
    },
)
def native(row: Fields) -> PreferencePair | Skipped:
    """Strings to the letter, or a list of messages with one message, or several, as each answer."""
    asked = prompt(row, "prompt")
    return scored(row, asked, answer(row, "chosen_response", asked), answer(row, "rejected_response", asked))


@row_format(
    "trl",
    "prompt",
    "chosen",
    "rejected",
    optional=REWARDS,
    unused=("prompt_id", "messages", *_MODELS),
    when=lambda value: not (isinstance(value["prompt"], str) and isinstance(value["chosen"], list)),
    needs="all strings, or all messages",
    seen="TRL, OpenRLHF, xtuner",
    example={
        "prompt": [{"role": "user", "content": "Who wrote Faust?"}],
        "chosen": [{"role": "assistant", "content": "Goethe."}],
        "rejected": [{"role": "assistant", "content": "Schiller."}],
    },
)
def trl(row: Fields) -> PreferencePair | Skipped:
    """Strings to the letter, or a list of messages with the messages of each answer."""
    asked = prompt(row, "prompt")
    return scored(row, asked, answer(row, "chosen", asked), answer(row, "rejected", asked))


# Whole conversations


@row_format(
    "implicit",
    "chosen",
    "rejected",
    optional=REWARDS,
    unused=("prompt_id", "messages", *_MODELS),
    when=lambda value: _is_conversation(value["chosen"]) and isinstance(value["rejected"], list),
    needs="lists of messages with the prompt in them",
    seen="TRL, torchtune",
    example={
        "chosen": [{"role": "user", "content": "Who wrote Faust?"}, {"role": "assistant", "content": "Goethe."}],
        "rejected": [{"role": "user", "content": "Who wrote Faust?"}, {"role": "assistant", "content": "Schiller."}],
    },
)
def implicit(row: Fields) -> PreferencePair | Skipped:
    """Two conversations: what they share up to where they differ is the prompt."""
    return scored(row, *_conversations(row, "chosen", "rejected"))


@row_format(
    "binarized",
    "prompt",
    "chosen",
    "rejected",
    optional=REWARDS,
    unused=("prompt_id", "messages", *_MODELS),
    when=lambda value: isinstance(value["prompt"], str) and isinstance(value["chosen"], list),
    needs="a string beside lists of messages",
    seen="UltraFeedback-binarized, Tulu 3",
    example={
        "prompt": "Who wrote Faust?",
        "chosen": [{"role": "user", "content": "Who wrote Faust?"}, {"role": "assistant", "content": "Goethe."}],
        "rejected": [{"role": "user", "content": "Who wrote Faust?"}, {"role": "assistant", "content": "Schiller."}],
        "score_chosen": 9.0,
        "score_rejected": 4.5,
    },
)
def binarized(row: Fields) -> PreferencePair | Skipped:
    """Two conversations, beside a turn of the user that both of them have."""
    text = row.text("prompt")
    pair = messages(row, "chosen"), messages(row, "rejected")
    if all(found and found[0].role == "assistant" for found in pair):
        chosen, rejected = (
            by_assistant(row, key, found) for key, found in zip(("chosen", "rejected"), pair, strict=True)
        )
        return scored(row, user(text), chosen, rejected)
    asked, chosen, rejected = split(row, ("chosen", "rejected"), *pair)
    if not any(message.role == "user" and message.content.strip() == text.strip() for message in asked):
        what = "is none of the user's turns that chosen and rejected share: mend the row, or leave prompt out"
        raise row.fail("prompt", what)
    return scored(row, asked, chosen, rejected)


@row_format(
    "swift",
    "messages",
    one_of=(("rejected_response", "rejected_messages"),),
    optional=REWARDS,
    seen="ms-swift",
    example={
        "messages": [{"role": "user", "content": "Who wrote Faust?"}, {"role": "assistant", "content": "Goethe."}],
        "rejected_response": "Schiller.",
    },
)
def swift(row: Fields) -> PreferencePair | Skipped:
    """A conversation whose last turn is the better answer, and the worse one, alone or with its conversation."""
    if row.has("rejected_messages"):
        return scored(row, *_conversations(row, "messages", "rejected_messages"))
    found = messages(row, "messages")
    chosen = by_assistant(row, "messages", found[-1:])
    return scored(row, before_answer(row, "messages", found[:-1]), chosen, assistant(row.text("rejected_response")))


_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@row_format(
    "hh",
    "chosen",
    "rejected",
    optional=REWARDS,
    when=lambda value: all(_is_marked(value[key]) for key in ("chosen", "rejected")),
    needs="strings that begin with Human:",
    seen="Anthropic HH-RLHF",
    example={
        "chosen": "\n\nHuman: Who wrote Faust?\n\nAssistant: Goethe.",
        "rejected": "\n\nHuman: Who wrote Faust?\n\nAssistant: Schiller.",
    },
)
def hh(row: Fields) -> PreferencePair | Skipped:
    """Two conversations as text, a turn behind each `\\n\\nHuman:` and `\\n\\nAssistant:`."""
    first, second = (human_turns(row, key) for key in ("chosen", "rejected"))
    return scored(row, *split(row, ("chosen", "rejected"), first, second))


def human_turns(row: Fields, key: str) -> tuple[Message, ...]:
    """The turns of a text such as `Human: … Assistant: …`."""
    before, found = marked_turns("\n\n" + row.text(key).lstrip(), _SPEAKER, _SPEAKERS)
    if before.strip() or not found or found[0].role != "user":
        raise row.fail(key, f"expected a text that begins with 'Human:', got {short(row.text(key).strip())!r}")
    return found


def _is_marked(value: object) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def _conversations(row: Fields, first: str, second: str) -> tuple[tuple[Message, ...], Response, Response]:
    return split(row, (first, second), messages(row, first), messages(row, second))


@row_format(
    "sharegpt",
    "conversations",
    "chosen",
    "rejected",
    optional=REWARDS,
    seen="LLaMA-Factory",
    example={
        "conversations": [
            {"from": "human", "value": "Who wrote Faust?"},
            {"from": "gpt", "value": "Goethe."},
            {"from": "human", "value": "When?"},
        ],
        "chosen": {"from": "gpt", "value": "He worked on it for sixty years."},
        "rejected": {"from": "gpt", "value": "I do not know."},
    },
)
def sharegpt(row: Fields) -> PreferencePair | Skipped:
    """Turns `{from, value}`, with one turn as each answer."""
    asked = before_answer(row, "conversations", turns(row, "conversations"))
    chosen, rejected = (by_assistant(row, key, (turn(row, key, row.value.get(key)),)) for key in ("chosen", "rejected"))
    return scored(row, asked, chosen, rejected)


# A question of the user, and two texts


def _asked(row: Fields, question: str, chosen: str, rejected: str) -> PreferencePair | Skipped:
    return scored(row, instruction(row, question), assistant(row.text(chosen)), assistant(row.text(rejected)))


@row_format(
    "alpaca",
    "instruction",
    "chosen",
    "rejected",
    optional=("input", "history", *REWARDS),
    unused=("output",),
    when=lambda value: isinstance(value["chosen"], str),
    needs="texts",
    seen="LLaMA-Factory",
    example={
        "instruction": "Say it politely.",
        "input": "Go away.",
        "output": "",
        "chosen": "Could you leave, please?",
        "rejected": "Off with you.",
    },
)
def alpaca(row: Fields) -> PreferencePair | Skipped:
    """What to do and what with, as one message of the user, and two texts."""
    return _asked(row, "instruction", "chosen", "rejected")


@row_format(
    "orca",
    "chosen",
    "rejected",
    one_of=(("question", "input"),),
    optional=REWARDS,
    when=lambda value: value.get("instruction") is None and isinstance(value["chosen"], str),
    needs="texts, and no instruction beside them",
    seen="Intel Orca DPO pairs and its distilabel edition, axolotl",
    example={
        "system": "Answer in one word.",
        "question": "Who wrote Faust?",
        "chosen": "Goethe",
        "rejected": "It was written by Schiller.",
    },
)
def orca(row: Fields) -> PreferencePair | Skipped:
    """A question, and two texts; often behind a system message."""
    return _asked(row, row.first("question", "input"), "chosen", "rejected")


@row_format(
    "argilla",
    "instruction",
    "chosen_response",
    "rejected_response",
    optional=("input", "history", *REWARDS),
    when=lambda value: isinstance(value["chosen_response"], str),
    needs="texts",
    seen="Argilla, axolotl",
    example={
        "instruction": "Who wrote Faust?",
        "chosen_response": "Goethe.",
        "rejected_response": "Schiller.",
    },
)
def argilla(row: Fields) -> PreferencePair | Skipped:
    """An instruction, and two texts."""
    return _asked(row, "instruction", "chosen_response", "rejected_response")


@row_format(
    "stack_exchange",
    "question",
    "response_j",
    "response_k",
    unused=("qid", "date", "metadata"),
    seen="StackExchange pairs (StackLLaMA)",
    example={"question": "Who wrote Faust?", "response_j": "Goethe.", "response_k": "Schiller."},
)
def stack_exchange(row: Fields) -> PreferencePair | Skipped:
    """A question, the answer with more votes (j), and one with fewer (k)."""
    return _asked(row, "question", "response_j", "response_k")


# Two answers, and a verdict


def _texts(row: Fields, first: str, second: str) -> tuple[Response, Response]:
    return assistant(row.text(first)), assistant(row.text(second))


@row_format(
    "pku",
    "prompt",
    "response_0",
    "response_1",
    one_of=(("better_response_id", "safer_response_id"),),
    unused=("is_response_0_safe", "is_response_1_safe"),
    seen="PKU-SafeRLHF",
    example={
        "prompt": "Who wrote Faust?",
        "response_0": "Schiller.",
        "response_1": "Goethe.",
        "better_response_id": 1,
        "safer_response_id": 0,
    },
)
def pku(row: Fields) -> PreferencePair | Skipped:
    """A question, two texts, and the number of the better one, or where that is not given of the safer one."""
    verdict = row.choice(row.first("better_response_id", "safer_response_id"), {0: 1, 1: -1})
    return decided(row, user(row.text("prompt")), *_texts(row, "response_0", "response_1"), verdict)


@row_format(
    "helpsteer3",
    "context",
    "response1",
    "response2",
    "overall_preference",
    unused=("domain", "language", "individual_preference"),
    seen="NVIDIA HelpSteer3",
    example={
        "context": [{"role": "user", "content": "Who wrote Faust?"}],
        "response1": "Goethe.",
        "response2": "Schiller.",
        "overall_preference": -2,
    },
)
def helpsteer3(row: Fields) -> PreferencePair | Skipped:
    """Messages, two texts, and -3 (the first is much better) to 3 (the second is)."""
    verdict = row.number("overall_preference")
    if not -3 <= verdict <= 3:
        raise row.fail("overall_preference", f"expected a number from -3 to 3, got {verdict:g}")
    asked = before_answer(row, "context", messages(row, "context"))
    return decided(row, asked, *_texts(row, "response1", "response2"), -verdict)


_WINNERS = {"model_a": 1, "model_b": -1, "tie": 0, "tie (bothbad)": 0, "both_bad": 0}


@row_format(
    "arena",
    "conversation_a",
    "conversation_b",
    "winner",
    seen="Chatbot Arena",
    example={
        "conversation_a": [
            {"role": "user", "content": "Who wrote Faust?"},
            {"role": "assistant", "content": "Goethe."},
        ],
        "conversation_b": [
            {"role": "user", "content": "Who wrote Faust?"},
            {"role": "assistant", "content": "Schiller."},
        ],
        "winner": "model_a",
    },
)
def arena(row: Fields) -> PreferencePair | Skipped:
    """Two conversations, and which of them won."""
    verdict = row.choice("winner", _WINNERS)
    return decided(row, *_conversations(row, "conversation_a", "conversation_b"), verdict)


@row_format(
    "alpaca_eval",
    "instruction",
    "output_1",
    "output_2",
    "preference",
    optional=("input",),
    seen="AlpacaEval, AlpacaFarm",
    example={"instruction": "Who wrote Faust?", "output_1": "Goethe.", "output_2": "Schiller.", "preference": 1.07},
)
def alpaca_eval(row: Fields) -> PreferencePair | Skipped:
    """An instruction, two texts, and 1 (the first is better) to 2 (the second is); 1.5 and 0 are ties."""
    preference = row.number("preference")
    if preference != 0 and not 1 <= preference <= 2:
        raise row.fail("preference", f"expected a number from 1 to 2, or 0 for a tie, got {preference:g}")
    verdict = 1.5 - preference if preference else 0.0
    return decided(row, instruction(row, "instruction"), *_texts(row, "output_1", "output_2"), verdict)


@row_format(
    "shp",
    "human_ref_A",
    "human_ref_B",
    "labels",
    one_of=(("history", "post"),),
    optional=("score_A", "score_B"),
    seen="Stanford Human Preferences",
    example={
        "history": "Who wrote Faust?",
        "human_ref_A": "Schiller.",
        "human_ref_B": "Goethe.",
        "labels": 0,
        "score_A": 3,
        "score_B": 41,
    },
)
def shp(row: Fields) -> PreferencePair | Skipped:
    """A post, two comments, and 1 where the first is better, 0 where the second is; votes become rewards."""
    first_is_better = row.choice("labels", {1: True, 0: False})
    asked = user(row.text(row.first("history", "post")))
    chosen, rejected = ("A", "B") if first_is_better else ("B", "A")
    scores: Mapping[str, float | None] = {"A": None, "B": None}
    if row.has("score_A") or row.has("score_B"):
        scores = {letter: row.number(f"score_{letter}") for letter in ("A", "B")}
        if scores["A"] == scores["B"]:
            return Skipped(row.where, TIE)
    return PreferencePair(
        asked,
        assistant(row.text(f"human_ref_{chosen}")),
        assistant(row.text(f"human_ref_{rejected}")),
        scores[chosen],
        scores[rejected],
        row.where,
    )
