"""A real pre-trained model from a package index: SmolLM2-135M-Instruct, as an ordinary checkpoint folder."""
