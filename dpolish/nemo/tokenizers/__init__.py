"""Tokenizers of `.nemo` archives as fast Hugging Face tokenizers with the same ids, and back.

archived.py   the artifacts of an archive → a fast tokenizer, without transformers
reading.py    a fast tokenizer → a Hugging Face folder
writing.py    a Hugging Face folder → artifacts and the configuration's block
"""
