"""Writing `.nemo` archives: a layout is an iterator of members, and one function packs members into a tar.

    tar.py          members → the archive
    zarr.py         mcore, one folder of raw chunks per tensor (read by NeMo up to 24.09)
    torch_dist.py   mcore, torch's distributed checkpoint (NeMo 2.0 and later)
    flat.py         legacy, one torch.save file per tensor-parallel and pipeline rank
    torch_file.py   the zip that torch.save makes, written tensor by tensor

Neither zarr nor Megatron is needed, and no writer holds more than one tensor.
"""
