"""Settings of adoption."""

from bloomery.components.core.modelling.named_models import NamedModel


class AdoptionConfig(NamedModel):
    """Another model than the newest becomes the newest: one from outside, or of an earlier stage."""

    @property
    def adopted(self) -> NamedModel:
        """The model that does."""
        return NamedModel(stage=self.stage, model=self.model, revision=self.revision)
