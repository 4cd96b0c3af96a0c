"""Tests of dpolish.config."""
