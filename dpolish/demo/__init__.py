"""The demonstration: a real model that a package index carries, and preference pairs that this package makes."""
