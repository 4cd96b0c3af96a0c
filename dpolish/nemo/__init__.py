"""The `.nemo` checkpoint: reading, writing and converting Megatron GPT models, stream by stream."""
