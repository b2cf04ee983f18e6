"""Preference optimisation on verified pairs."""
