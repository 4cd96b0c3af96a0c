"""The shapes of rows: preference data and demonstrations, each one function from a row's fields to what it says.

`PairFile` and `ConversationFile` read a file: its shape is found from the first good row, or given, and every further
row must have it.
"""

from dpolish.data.formats import candidates, demonstrations, pairs  # each registers its shapes
from dpolish.data.formats.answers import PAIRINGS, SKIP_REASONS, Candidate, Candidates, Skipped
from dpolish.data.formats.demonstrations import TAIL, PromptTemplate
from dpolish.data.formats.fields import Fields
from dpolish.data.formats.files import SCORED_AGAINST, SCORED_EQUALLY, ConversationFile, PairFile
from dpolish.data.formats.messages import ROLES
from dpolish.data.formats.shape import FORMATS, SFT_FORMATS, Format, detect, detect_any, row_format

READ_REMARKS = (SCORED_AGAINST, SCORED_EQUALLY, TAIL)
"""What is worth knowing of records as they were read."""

__all__ = [
    "FORMATS",
    "PAIRINGS",
    "READ_REMARKS",
    "ROLES",
    "SCORED_AGAINST",
    "SCORED_EQUALLY",
    "SFT_FORMATS",
    "SKIP_REASONS",
    "TAIL",
    "Candidate",
    "Candidates",
    "ConversationFile",
    "Fields",
    "Format",
    "PairFile",
    "PromptTemplate",
    "Skipped",
    "candidates",
    "demonstrations",
    "detect",
    "detect_any",
    "pairs",
    "row_format",
]
