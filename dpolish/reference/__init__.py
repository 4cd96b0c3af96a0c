"""The reference model's log-probabilities: computed once, by the policy's own code, and kept by content."""
