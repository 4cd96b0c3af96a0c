"""Settings of the process, made before torch and transformers load."""

import os


def prepare_process() -> None:
    """Let tokenizers use all cores, and keep transformers' own bars and warnings off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
