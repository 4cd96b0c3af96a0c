"""Measurements against other trainers. Each prints a table and writes JSON; none is part of the installed package."""
