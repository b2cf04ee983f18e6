"""Raw files in, kept documents and counted rejects out."""
