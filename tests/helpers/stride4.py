"""A tokenizer of stride 4 without downsampling convolutions, and its random weights."""

import dataclasses

from helpers.tiny import tokenizer_variables

from infinity_jax.config import TokenizerConfig

GRIDS = ((1, 1), (2, 2), (4, 4))
TOKENIZER = TokenizerConfig(
    bits=4, base_channels=8, channel_multipliers=(1,), residual_blocks=1, unshuffle=4, norm_groups=4
)
EIGHT_BITS = dataclasses.replace(TOKENIZER, bits=8)  # as trained in tests of whole runs
PARAMS = tokenizer_variables(TOKENIZER)['params']
