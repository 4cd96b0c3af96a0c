"""Tests of dpolish.training."""
