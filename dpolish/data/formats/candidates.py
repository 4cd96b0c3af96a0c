"""Shapes of preference rows with several answers to a prompt, in one row or over the rows of the file."""

import re
from collections.abc import Callable, Mapping

from dpolish.data.formats.answers import Candidate, Candidates
from dpolish.data.formats.fields import Fields
from dpolish.data.formats.messages import (
    answer,
    assistant,
    before_answer,
    by_assistant,
    marked_turns,
    messages,
    prompt,
    turns,
    user,
)
from dpolish.data.formats.pairs import human_turns, instruction
from dpolish.data.formats.shape import row_format
from dpolish.records import Message, Prompt, Response


def _candidates(asked: Prompt, *answers: Candidate, labelled: bool = False) -> Candidates:
    return Candidates(asked, answers, labelled)


def _objects(row: Fields, key: str) -> list[Fields]:
    found = row.objects(key, "answers")
    if not found:
        raise row.fail(key, "expected answers, got an empty list")
    return found


def _holds(key: str, *needed: str) -> Callable[[Mapping[str, object]], bool]:
    """Whether the first object of a list has certain keys."""

    def holds(value: Mapping[str, object]) -> bool:
        items = value[key]
        first = items[0] if isinstance(items, list) and items else None
        return isinstance(first, dict) and all(name in first for name in needed)

    return holds


@row_format(
    "nemo_rl",
    "context",
    "completions",
    when=_holds("completions", "completion"),
    needs="completions are objects {rank, completion}",
    unused=("task_name",),
    seen="NeMo-RL",
    example={
        "context": [{"role": "user", "content": "Who wrote Faust?"}],
        "completions": [
            {"rank": 0, "completion": [{"role": "assistant", "content": "Goethe."}]},
            {"rank": 1, "completion": [{"role": "assistant", "content": "Schiller."}]},
        ],
    },
)
def nemo_rl(row: Fields) -> Candidates:
    """Messages, and answers by rank, 0 the best; a `reward` beside each is kept."""
    asked = prompt(row, "context")
    items = _objects(row, "completions")
    rewarded = any(item.has("reward") for item in items)
    answers = [
        Candidate(
            answer(item, "completion", asked),
            -item.number("rank"),
            item.number("reward") if rewarded else None,
            row.where,
        )
        for item in items
    ]
    return _candidates(asked, *answers)


@row_format(
    "nectar",
    "prompt",
    "answers",
    when=_holds("answers", "answer", "rank"),
    needs="answers are objects {answer, rank}",
    unused=("source", "turns", "num_responses", "good_natured"),
    seen="Nectar",
    example={
        "prompt": "\n\nHuman: Who wrote Faust?\n\nAssistant: ",
        "answers": [
            {"answer": "Goethe.", "model": "a", "rank": 1.0},
            {"answer": "Schiller?", "model": "b", "rank": 2.0},
            {"answer": "Nobody.", "model": "c", "rank": 3.0},
        ],
    },
)
def nectar(row: Fields) -> Candidates:
    """A question, alone or as turns `Human: … Assistant: …`, and texts by rank, 1 the best."""
    asked = _nectar_prompt(row)
    answers = [
        Candidate(assistant(item.text("answer")), -item.number("rank"), None, row.where)
        for item in _objects(row, "answers")
    ]
    return _candidates(asked, *answers)


def _nectar_prompt(row: Fields) -> tuple[Message, ...]:
    text = row.text("prompt")
    if not text.lstrip().startswith("Human:"):
        return user(text)
    found = human_turns(row, "prompt")
    open_end = found[-1].role == "assistant" and not found[-1].content
    return before_answer(row, "prompt", found[:-1] if open_end else found)


@row_format(
    "ultrafeedback",
    "instruction",
    "completions",
    when=_holds("completions", "response", "overall_score"),
    needs="completions are objects {response, overall_score}",
    unused=("source", "models", "correct_answers", "incorrect_answers"),
    seen="UltraFeedback as it was published",
    example={
        "instruction": "Who wrote Faust?",
        "completions": [
            {"model": "a", "response": "Schiller.", "overall_score": 2.5},
            {"model": "b", "response": "Goethe.", "overall_score": 8.5},
        ],
    },
)
def ultrafeedback(row: Fields) -> Candidates:
    """An instruction, and texts with a score each."""
    return _candidates(
        instruction(row, "instruction"),
        *(
            _by_score(item, assistant(item.text("response")), item.number("overall_score"))
            for item in _objects(row, "completions")
        ),
    )


def _by_score(row: Fields, said: Response, score: float) -> Candidate:
    return Candidate(said, score, score, row.where)


_SPEAKER = re.compile(r"\n*<extra_id_1>(User|Assistant)\n*")
_SPEAKERS = {"User": "user", "Assistant": "assistant"}


@row_format(
    "helpsteer2",
    "prompt",
    "response",
    "helpfulness",
    grouped=True,
    unused=("correctness", "coherence", "complexity", "verbosity"),
    seen="NVIDIA HelpSteer and HelpSteer2",
    example={
        "prompt": "Who wrote Faust?",
        "response": "Goethe.",
        "helpfulness": 4,
        "correctness": 4,
        "coherence": 4,
        "complexity": 1,
        "verbosity": 1,
    },
)
def helpsteer2(row: Fields) -> Candidates:
    """A question and one text with its helpfulness, 0 to 4; the rows of one prompt belong together."""
    text = row.text("prompt")
    opening, others = marked_turns(text, _SPEAKER, _SPEAKERS)
    asked = user(text) if not others else (*user(opening.strip()), *others)
    before_answer(row, "prompt", asked)
    return _candidates(asked, _by_score(row, assistant(row.text("response")), row.number("helpfulness")))


def _is_flag(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1))


@row_format(
    "kto",
    "prompt",
    "completion",
    "label",
    grouped=True,
    when=lambda value: _is_flag(value["label"]),
    needs="label is true or false",
    seen="TRL (KTO)",
    example={"prompt": "Question: who wrote Faust?\nAnswer:", "completion": " Goethe", "label": True},
)
def kto(row: Fields) -> Candidates:
    """Strings to the letter, or messages: an answer that is good or bad; the rows of one prompt belong together."""
    asked = prompt(row, "prompt")
    return _labelled(row, asked, answer(row, "completion", asked), "label")


@row_format(
    "kto_messages",
    one_of=(("messages", "conversations"), ("label", "kto_tag")),
    grouped=True,
    when=lambda value: any(_is_flag(value.get(key)) for key in ("label", "kto_tag")),
    needs="label is true or false",
    seen="ms-swift, LLaMA-Factory (KTO)",
    example={
        "messages": [{"role": "user", "content": "Who wrote Faust?"}, {"role": "assistant", "content": "Goethe."}],
        "kto_tag": True,
    },
)
def kto_messages(row: Fields) -> Candidates:
    """A conversation whose last turn is good or bad; the rows of one prompt belong together."""
    key = row.first("messages", "conversations")
    found = messages(row, key) if key == "messages" else turns(row, key)
    said = by_assistant(row, key, found[-1:])
    return _labelled(row, before_answer(row, key, found[:-1]), said, row.first("label", "kto_tag"))


def _labelled(row: Fields, asked: Prompt, said: Response, key: str) -> Candidates:
    return _candidates(asked, Candidate(said, float(row.flag(key)), None, row.where), labelled=True)
