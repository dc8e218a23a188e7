"""The transformer that predicts bits scale by scale (paper 3.3)."""
