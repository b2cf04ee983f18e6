"""Exact and near duplicates out, evaluation sets protected."""
