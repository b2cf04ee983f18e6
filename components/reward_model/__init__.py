"""A model that scores answers, learnt from preference pairs."""
