"""Distillation: a model learns what a larger one thinks of every token."""
