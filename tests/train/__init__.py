"""Tests of dpolish.train."""
