"""The best sub-network of a trained model that keeps a limit, searched for."""
