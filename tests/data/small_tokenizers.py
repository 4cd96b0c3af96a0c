"""Small tokenizers of every kind that matters here, made on the spot."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

SENTENCES = (
    "Which year was the Magna Carta signed? It was signed in 1215.",
    "Please give me the name of a famous painter. I refuse to answer this question.",
    "You are a helpful assistant. user system assistant",
    "Das Café öffnet um 9 Uhr, 東京は晴れです 🙂.",
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ raise_exception('only user and assistant here') }}"
    "{% endif %}{% endfor %}"
)


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind, with ChatML; it adds nothing to a string."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token="<|endoftext|>", model_max_length=32
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.add_tokens([AddedToken("<think>", normalized=False)])
    fast.chat_template = CHATML
    return fast


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece's kind: blanks become a letter, put before the first word only; BOS in front; `[INST]` in text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer = _without_byte_tokens_added(tokenizer)
    tokenizer.post_processor = _around(tokenizer, "<s> $A")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = BRACKETS
    return fast


def _without_byte_tokens_added(tokenizer: Tokenizer) -> Tokenizer:
    """The same model with its byte tokens in the vocabulary alone.

    The trainer makes every special token an added one; a model of this kind does not.
    """
    plain = Tokenizer(tokenizer.model)
    plain.pre_tokenizer, plain.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    plain.add_special_tokens(["<unk>", "<s>", "</s>"])
    return plain


@cache
def words(pattern: str = "$A") -> PreTrainedTokenizerFast:
    """One id per word: `pattern` says what is put around a string, such as "<s> $A </s>"."""
    names = ["<unk>", "<s>", "</s>", "the", "cat", "sat", "on", "mat", "a", "dog", "ran", ".", "!"]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = _around(tokenizer, pattern)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = None
    return fast


MERGING_IDS = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "d": 5, "ab": 6, "abc": 7, " ": 8}


@cache
def merging(pattern: str = "$A") -> PreTrainedTokenizerFast:
    """Letters, of which `ab` and `abc` join, wherever the border between prompt and answer lies."""
    tokenizer = Tokenizer(models.BPE(MERGING_IDS, [("a", "b"), ("ab", "c")]))
    tokenizer.post_processor = _around(tokenizer, pattern)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] + '</s>' }}{% endfor %}"
    return fast


def _around(tokenizer: Tokenizer, pattern: str) -> processors.TemplateProcessing:
    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>") if token in pattern]
    return processors.TemplateProcessing(single=pattern, special_tokens=special)


class Letters(PreTrainedTokenizer):
    """A slow tokenizer, in Python: one id per letter, BOS in front, the unknown id for anything beyond ASCII."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - the library's own way

    def __init__(self) -> None:
        self._ids = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(code): code for code in range(3, 128)}}
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        self.add_tokens([AddedToken("<think>", normalized=False)])
        self.chat_template = BRACKETS

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return next((token for token, id_ in self._ids.items() if id_ == index), "<unk>")

    def build_inputs_with_special_tokens(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        return [1, *ids, *(pair or [])]


@cache
def letters() -> Letters:
    """The slow tokenizer, once."""
    return Letters()
