"""NeMo-Aligner's SFT command, `python -u examples/nlp/gpt/train_gpt_sft.py key=value …`: the same as `dpolish sft`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # run from a clone, installed or not
    from dpolish.cli.main import main

    main(["sft", *sys.argv[1:]])
