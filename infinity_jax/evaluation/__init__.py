"""How well a model draws, predicts and reconstructs."""
