"""Tests of dpolish.cli."""
