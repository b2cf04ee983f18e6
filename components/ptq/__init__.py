"""Post-training quantisation, exported and measured as served."""
