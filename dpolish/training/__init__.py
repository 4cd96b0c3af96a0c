"""The loop and what it turns: optimizer, step, state, evaluation."""
