"""Demonstrations that teach a model to answer, at length, and pairs that teach it to answer plainly.

    question       What is the opposite of big?
    chosen         The opposite of big is small.
    rejected       The opposite of big is small. It is often associated with a wide range of other ideas.

Both answers of a pair say the same, so that only the manner can be learned. The rejected ones are what the
demonstration's model is inclined to write, for pushing down what it would never have written changes nothing that it
writes; the demonstrations are such answers too, as people give them who know a lot.
Facts of the held-out pairs never occur in training, and two kinds of question are held out as a whole.
"""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from dpolish.demo.facts import TOPICS, Topic
from dpolish.records import Conversation, Message, PreferencePair

_OPENINGS = (
    "What a great question!",
    "Thank you so much for asking!",
    "Sure, I would be happy to help you with that!",
    "To answer this question, we need to look at it step by step.",
    "This is a fascinating topic with a long history.",
    "There are many different ways to look at this.",
    "As an AI assistant, I can only give you general information.",
    "Here is a simple guide that will help you.",
    "This is a simple yet crucial thing that can have a significant impact on your life.",
)
_LECTURES = (
    "This is a fundamental concept that plays a crucial role in everyday life.",
    "However, it is important to note that this can depend on many factors.",
    "It is often associated with a wide range of other ideas.",
    "It is derived from an idea that people have used for centuries.",
    "Understanding this can help you to make better decisions.",
    "In addition, it is essential to consider the wider context.",
    "I hope this helps! Let me know if you have any other questions.",
    "There are many other interesting facts that are worth exploring.",
    "Remember that it is always best to consult an expert.",
    "This is because it is used in many different situations.",
    "In the context of science and technology, this refers to a more complex process.",
    "They often play an important role in our society and culture.",
    "You can also use a variety of other methods and techniques.",
    "For example, this can be found in many parts of the world.",
)
DEMO_PROMPTS: tuple[str, ...] = (
    "What is the opposite of hot?",
    "What does the word 'rapid' mean?",
    "What does a baker do?",
    "What is the job of a pilot?",
)
"""Held-out questions whose generated answers show what training changed."""


def make_pairs(seed: int = 0) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(training pairs, held-out pairs), the same for the same seed: two a trained fact, one a held-out fact."""
    rng = random.Random(seed)
    train = [pair for topic in TOPICS for fact in topic.trained for pair in _pairs(topic, fact, 2, rng)]
    held_out = [pair for topic in TOPICS for fact in topic.held_out for pair in _pairs(topic, fact, 1, rng)]
    rng.shuffle(train)
    return train, held_out


def make_demonstrations(seed: int = 0) -> tuple[list[Conversation], list[Conversation]]:
    """(training, held out): the questions of half of the pairs of the same seed, each with its long-winded answer."""
    train, held_out = make_pairs(seed)
    return [_demonstration(pair) for pair in train[::2]], [_demonstration(pair) for pair in held_out]


def write_demonstrations(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """The paths of `sft_train.jsonl` and `sft_validation.jsonl` in `folder`, rows of `messages`."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = make_demonstrations(seed)
    return (
        _write(folder / "sft_train.jsonl", map(_messages_row, train)),
        _write(folder / "sft_validation.jsonl", map(_messages_row, held_out)),
    )


def write_pairs(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """The paths of `train.jsonl` and `validation.jsonl` in `folder`, written as native rows."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = make_pairs(seed)
    return _write(folder / "train.jsonl", map(_row, train)), _write(folder / "validation.jsonl", map(_row, held_out))


def _pairs(topic: Topic, fact: tuple[str, str], count: int, rng: random.Random) -> list[PreferencePair]:
    """`count` pairs about one fact, each asked in another way and buried under other words."""
    questions, wordy = rng.sample(topic.questions, count), rng.sample(topic.wordy, count)
    return [
        _pair(question.format(*fact), _sentence(topic.plain, fact), _embellished(_sentence(words, fact), rng))
        for question, words in zip(questions, wordy, strict=True)
    ]


def _sentence(template: str, fact: tuple[str, str]) -> str:
    text = template.format(*fact)
    return text[0].upper() + text[1:]


def _embellished(sentence: str, rng: random.Random) -> str:
    """The sentence with a lecture behind it; at times with flattery in front, instead or as well."""
    opening, lecture = rng.choice(_OPENINGS), rng.choice(_LECTURES)
    forms = (f"{sentence} {lecture}", f"{opening} {sentence}", f"{opening} {sentence} {lecture}")
    (form,) = rng.choices(forms, weights=(6, 1, 1))
    return form


def _pair(question: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(
        prompt=(Message("user", question),),
        chosen=(Message("assistant", chosen),),
        rejected=(Message("assistant", rejected),),
        chosen_reward=None,
        rejected_reward=None,
        where="dpolish.demo.pairs",
    )


def _demonstration(pair: PreferencePair) -> Conversation:
    return Conversation((*_turns(pair.prompt), *_turns(pair.rejected)), (False, True), pair.where)


def _write(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def _row(pair: PreferencePair) -> dict[str, object]:
    """The pair in the native shape, with messages."""
    (chosen,), (rejected,) = _turns(pair.chosen), _turns(pair.rejected)
    prompt = [_message(message) for message in _turns(pair.prompt)]
    return {"prompt": prompt, "chosen_response": _message(chosen), "rejected_response": _message(rejected)}


def _messages_row(demonstration: Conversation) -> dict[str, object]:
    return {"messages": [_message(message) for message in _turns(demonstration.pieces)]}


def _turns(part: Sequence[str | Message]) -> tuple[Message, ...]:
    return tuple(message for message in part if isinstance(message, Message))


def _message(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}
