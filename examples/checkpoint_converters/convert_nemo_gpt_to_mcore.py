"""NeMo's converter from a legacy GPT to Megatron-core, with its flags: the same as `dpolish convert IN OUT.nemo`.

python convert_nemo_gpt_to_mcore.py --in-folder ./model_checkpoint --out-file ./mcore_gpt.nemo
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a clone, installed or not
    from dpolish.cli.main import main

    parser = argparse.ArgumentParser(description="Convert a legacy GPT checkpoint of NeMo to Megatron-core.")
    parser.add_argument("--in-folder", "--input_name_or_path", required=True, help=".nemo archive, or its folder")
    parser.add_argument("--out-file", "--output_path", required=True, help="the .nemo to write")
    parser.add_argument("--cpu-only", "--cpu_only", action="store_true", help="nothing here needs a GPU")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    given = parser.parse_args()
    overwrite = ["--overwrite"] if given.overwrite else []
    main(["convert", given.in_folder, given.out_file, "--layout", "mcore-zarr", *overwrite])
