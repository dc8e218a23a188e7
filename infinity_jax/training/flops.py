"""FLOP counts of the networks from their dimensions, independent of the compiled program.

Convention: a multiply-add is 2 FLOP; only matrix products, convolutions and attention count, not
norms, softmax, resizing or sampling. Each scale attends to exactly the tokens [0, end of its own
scale). Texts count at their padded length, convolutions with their zero padding. Operations that a
program recomputes (rematerialisation) count once, so that rates and MFU are those of the model.
"""

import dataclasses
import itertools

from infinity_jax.config import TextConfig, TokenizerConfig, TransformerConfig, pixels_per_token
from infinity_jax.scales import ScaleSchedule

BACKWARD = 2  # times the forward pass: gradients of the inputs and of the weights


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating point operations by part.

    Attributes:
      matrices: the kernels that a block multiplies image tokens with.
      self_attention: its scores and weighted sums.
      cross_attention: its scores and weighted sums, and every layer's keys and values of the text.
      text: pooling and projection of the text, and modulation; once per text.
      head: embedding of the inputs, and logits.
      text_encoder: T5.
      tokenizer: encoder or decoder of the autoencoder.
    """

    matrices: float = 0
    self_attention: float = 0
    cross_attention: float = 0
    text: float = 0
    head: float = 0
    text_encoder: float = 0
    tokenizer: float = 0

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    @property
    def transformer(self) -> float:
        """All parts of the transformer: without text encoder and tokenizer."""
        return self.total - self.text_encoder - self.tokenizer

    def __add__(self, other: 'Flops') -> 'Flops':
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Flops(*(a + b for a, b in pairs))

    def __mul__(self, factor: float) -> 'Flops':
        return Flops(*(factor * part for part in dataclasses.astuple(self)))


def transformer_forward(
    config: TransformerConfig, schedule: ScaleSchedule, batch: int, text_length: int
) -> Flops:
    """One pass over all scales, in training or, scale by scale, in generation.

    Args:
      config: the transformer.
      schedule: the token grids.
      batch: rows; guidance doubles them.
      text_length: tokens that every text is padded to.
    """
    width, depth, tokens = config.width, config.depth, schedule.num_tokens
    # qkv 3C², cross-attention's query C², both output projections 2C², FFN 2·C·F.
    kernels = 6 * width**2 + 2 * width * config.hidden_width
    pairs = sum((end - start) * end for start, end in schedule.spans)  # of queries and keys
    text_kernels = (
        text_length
        * width
        * (
            2 * config.text_channels  # keys and values of the pooling
            + config.text_channels  # projection
            + width
        )
    )
    per_text_kernels = width**2 * (1 + 6 + 2)  # pooled output, modulation of blocks and head
    pooling = 2 * text_length * width  # scores and weighted sum
    row = Flops(
        matrices=2 * depth * tokens * kernels,
        self_attention=2 * depth * 2 * pairs * width,
        cross_attention=2 * depth * 2 * (tokens * text_length * width + text_length * width**2),
        text=2 * (text_kernels + per_text_kernels + pooling),
        head=2 * width * (config.token_bits * (tokens - 1) + config.head_outputs * tokens),
    )
    return row * batch


def text_encoder_forward(config: TextConfig, batch: int, text_length: int) -> Flops:
    """The T5 encoder on `batch` texts padded to `text_length` tokens."""
    inner = config.num_heads * config.head_dim
    kernels = 4 * config.width * inner + 3 * config.width * config.ffn_width
    attention = 2 * text_length * inner
    layer = 2 * text_length * (kernels + attention)
    return Flops(text_encoder=batch * config.num_layers * layer)


def tokenizer_encode(config: TokenizerConfig, height: int, width: int, batch: int) -> Flops:
    """The autoencoder's encoder on images of height x width pixels."""
    areas, widths = _levels(config, height, width)
    size = config.kernel_size
    total = areas[0] * _conv(3 * config.unshuffle**2, widths[0], size)
    previous = widths[0]
    for level, (area, channels) in enumerate(zip(areas, widths, strict=True)):
        total += area * _residual_blocks(previous, channels, config.residual_blocks, size)
        if level + 1 < len(widths):
            total += areas[level + 1] * _conv(channels, channels)  # stride 2
        previous = channels
    total += areas[-1] * _residual_blocks(previous, previous, 2, size)
    total += areas[-1] * _conv(previous, config.bits, size)
    return Flops(tokenizer=batch * total)


def tokenizer_decode(config: TokenizerConfig, height: int, width: int, batch: int) -> Flops:
    """The autoencoder's decoder to images of height x width pixels."""
    areas, widths = _levels(config, height, width)
    previous, size = widths[-1], config.kernel_size
    total = areas[-1] * _conv(config.bits, previous, size)
    total += areas[-1] * _residual_blocks(previous, previous, 2, size)
    for level in reversed(range(len(widths))):
        blocks = _residual_blocks(previous, widths[level], config.decoder_depth, size)
        total += areas[level] * blocks
        previous = widths[level]
        if level:
            total += areas[level - 1] * _conv(previous, previous)  # after nearest x 2
    total += areas[0] * _conv(previous, 3 * config.unshuffle**2, size)
    return Flops(tokenizer=batch * total)


def generation(
    transformer: TransformerConfig,
    tokenizer: TokenizerConfig,
    text: TextConfig,
    schedule: ScaleSchedule,
    batch: int,
    text_length: int,
    *,
    guided: bool = True,
) -> Flops:
    """Generating `batch` images: text encoder, transformer (twice under guidance) and decoder."""
    rows = batch * (2 if guided else 1)
    height, width = _image_size(transformer, tokenizer, schedule)
    return (
        text_encoder_forward(text, batch, text_length)
        + transformer_forward(transformer, schedule, rows, text_length)
        + tokenizer_decode(tokenizer, height, width, batch)
    )


def training_step(
    config: TransformerConfig,
    schedule: ScaleSchedule,
    batch: int,
    text_length: int,
    *,
    trained_text: TextConfig | None = None,
    frozen_kernels: bool = False,
) -> Flops:
    """The trained networks, forward and backward: the "model FLOPs" of rates and MFU.

    The frozen networks are left out, so that runs from images and from stored features compare;
    `frozen_forward` counts them.

    Args:
      trained_text: the text encoder, if it is trained as well.
      frozen_kernels: LoRA is trained: products with weights have the gradient of their inputs
        alone, the text's conditioning has none. Products with adapters, about 1 %, do not count.
    """
    forward = transformer_forward(config, schedule, batch, text_length)
    if frozen_kernels:
        attention = Flops(
            self_attention=forward.self_attention, cross_attention=forward.cross_attention
        )
        return forward + dataclasses.replace(forward, text=0) + attention
    if trained_text is not None:
        forward += text_encoder_forward(trained_text, batch, text_length)
    return forward * (1 + BACKWARD)


def tokenizer_training_step(
    config: TokenizerConfig, height: int, width: int, batch: int, *, frozen_encoder: bool = False
) -> float:
    """The autoencoder, forward and backward; without discriminator and LPIPS.

    A frozen encoder is left out, as every frozen network is.
    """
    forward = tokenizer_decode(config, height, width, batch)
    if not frozen_encoder:
        forward += tokenizer_encode(config, height, width, batch)
    return (forward * (1 + BACKWARD)).total


def frozen_forward(
    transformer: TransformerConfig,
    tokenizer: TokenizerConfig,
    text: TextConfig,
    schedule: ScaleSchedule,
    batch: int,
    text_length: int,
) -> Flops:
    """The frozen tokenizer's encoder and text encoder inside a training step."""
    height, width = _image_size(transformer, tokenizer, schedule)
    return text_encoder_forward(text, batch, text_length) + tokenizer_encode(
        tokenizer, height, width, batch
    )


def _image_size(
    transformer: TransformerConfig, tokenizer: TokenizerConfig, schedule: ScaleSchedule
) -> tuple[int, int]:
    """(height, width) in pixels."""
    return schedule.image_size(pixels_per_token(transformer, tokenizer))


def _levels(config: TokenizerConfig, height: int, width: int) -> tuple[list[int], list[int]]:
    """Positions and channels of each resolution, finest first."""
    strides = [config.unshuffle * 2**level for level in range(len(config.channel_multipliers))]
    areas = [(height // stride) * (width // stride) for stride in strides]
    return areas, [config.base_channels * m for m in config.channel_multipliers]


def _conv(channels_in: int, channels_out: int, size: int = 3) -> int:
    """A convolution's operations per output position."""
    return 2 * size**2 * channels_in * channels_out


def _residual_blocks(channels_in: int, channels: int, count: int, size: int) -> int:
    """Operations per position of `count` residual blocks, the first of which may change width."""
    widths = (channels_in, *[channels] * count)
    total = 0
    for before, after in itertools.pairwise(widths):
        total += _conv(before, after, size) + _conv(after, after, size)
        if before != after:
            total += _conv(before, after, size=1)  # shortcut
    return total
