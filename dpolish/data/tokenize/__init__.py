"""Rows to token ids, and which of them are trained."""

from dpolish.data.tokenize.encode import Tokenization
from dpolish.data.tokenize.rows import TokenConversation, TokenPair
from dpolish.data.tokenize.show import Kind, marked_tokens
from dpolish.data.tokenize.vocabulary import check_vocabulary

__all__ = ["Kind", "TokenConversation", "TokenPair", "Tokenization", "check_vocabulary", "marked_tokens"]
