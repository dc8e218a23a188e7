"""The bitwise multi-scale residual quantizer and its convolutional autoencoder (paper 3.2)."""
