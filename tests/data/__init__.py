"""Tests of dpolish.data."""
