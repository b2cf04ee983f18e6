"""Settings of choosing among the quantised variants."""

from pydantic import Field

from bloomery.components.core.config import Config


class PtqConfig(Config):
    """Post-training quantisation: of the variants that were exported and measured, the smallest good one is chosen."""

    tolerance: float = Field(default=0.01, ge=0)
    """Largest accepted drop of the mean score on the `validation` split; 0.01 is one point."""
