"""NeMo's converter from a Hugging Face Llama, with its flags: the same as `dpolish convert IN OUT.nemo`.

python convert_hf_llama_to_nemo.py --in-file ./llama_2_7b --out-file ./mcore_gpt.nemo
"""

import argparse
import sys
from pathlib import Path

_DTYPES = {"32": "fp32", "16": "fp16", "16-mixed": "fp16", "bf16": "bf16", "bf16-mixed": "bf16"}

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a clone, installed or not
    from dpolish.cli.main import main

    parser = argparse.ArgumentParser(description="Convert a Hugging Face Llama to a Megatron-core checkpoint of NeMo.")
    parser.add_argument("--in-file", "--input_name_or_path", required=True, help="Hugging Face folder")
    parser.add_argument("--out-file", "--output_path", required=True, help="the .nemo to write")
    parser.add_argument("--precision", choices=_DTYPES, help="type of the weights; that of the folder by default")
    given = parser.parse_args()
    dtype = ["--dtype", _DTYPES[given.precision]] if given.precision else []
    main(["convert", given.in_file, given.out_file, "--layout", "mcore-zarr", *dtype])
