"""What is minimised: pure losses per pair, and the objective that makes them out of log-probabilities."""
