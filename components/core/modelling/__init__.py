"""Checkpoints: loading, answering and training."""
