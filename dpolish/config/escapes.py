r"""Characters that a shell cannot write, in texts that may hold them: `\n` for a line break, `\x11`, `\u2581`, `\\`.

NeMo-Aligner reads its `prompt_template` like this; here the tokens of the chat format are read so too. A backslash
before anything else stands for itself.
"""

import re

_ESCAPE = re.compile(r"\\(?:[\\nrt]|x[0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4})")
_CHARACTERS = {r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\\": "\\"}


def read_escapes(text: str) -> str:
    r"""The text with every escape replaced by its character.

    >>> read_escapes(r"Q: {input}\nA: {output}")
    'Q: {input}\nA: {output}'
    """
    return _ESCAPE.sub(lambda match: _CHARACTERS.get(match[0]) or chr(int(match[0][2:], 16)), text)


def write_escapes(text: str) -> str:
    """A text that `read_escapes` reads as this one."""
    return text.replace("\\", "\\\\")
