"""Continued pre-training on documents, with replay."""
