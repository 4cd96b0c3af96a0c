"""Tests of dpolish.reference."""
