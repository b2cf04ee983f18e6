"""The gate, and the registry behind it."""
