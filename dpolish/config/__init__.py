"""Configuration: NeMo-Aligner's keys as typed values, composed from YAML and overrides. Loads without torch."""

from dpolish.config.compose import Composed, compose, find_config, forbidden_attention, require_complete, to_yaml
from dpolish.config.schema import DpoConfig, RunConfig, SftConfig

__all__ = [
    "Composed",
    "DpoConfig",
    "RunConfig",
    "SftConfig",
    "compose",
    "find_config",
    "forbidden_attention",
    "require_complete",
    "to_yaml",
]
