"""Where records go: metrics.jsonl, the terminal, W&B, TensorBoard. No torch here."""
