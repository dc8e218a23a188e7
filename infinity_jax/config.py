"""Configuration of models: dimensions of the networks, quantization, and presets."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from infinity_jax.errors import UserError
from infinity_jax.ranges import LARGEST_EDGE, Range, check_ranges, real
from infinity_jax.renamed import notice
from infinity_jax.scales import ScaleSchedule

FALLBACK_GROUPS = 24  # of a group norm whose width `norm_groups` does not divide, as released
DTYPES = ('float32', 'bfloat16', 'float16')
CONVOLUTION_PRECISIONS = ('float32', 'tf32_mixed', 'tf32', 'bfloat16_3x', 'bfloat16')
AUTO = 'auto'
CLASSIFIERS = ('bits', 'index')
MAX_INDEX_BITS = 16  # of a token; a softmax over 65,536 numbers
MAX_PARAMETERS = 10**12  # of a transformer; more fit no memory
_WIDTH = Range(1, LARGEST_EDGE)
_TOKENIZER_RANGES = {
    'bits': Range(1, 256),
    'base_channels': _WIDTH,
    'channel_multipliers': Range(1, 64),
    'residual_blocks': Range(1, 64),
    'unshuffle': Range(1, 64),
    'norm_groups': _WIDTH,
    'decoder_blocks': Range(0, 64),
}
_TRANSFORMER_RANGES = {
    'depth': Range(1, 1000),
    'width': _WIDTH,
    'num_heads': Range(1, 1024),
    'bits': Range(1, 256),
    'mlp_ratio': real(0, 64, above=True),
    'text_channels': _WIDTH,
    'text_length': _WIDTH,
    'max_scales': Range(1, 256),
    'drop_path': real(0, 1, below=True),
}
_TEXT_RANGES = {
    'vocab_size': Range(0, 10**7),
    'width': _WIDTH,
    'num_layers': Range(1, 1000),
    'num_heads': Range(1, 1024),
    'head_dim': Range(1, 1024),
    'ffn_width': Range(1, 2**20),
    'buckets': Range(4, 4096),
    'max_distance': Range(1, 10**6),
}
_MOST_LEVELS = 8  # of a tokenizer


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The convolutional autoencoder around the bitwise quantizer (paper 3.2).

    The released tokenizers have 16 to 64 bits at stride 16 with multipliers (1, 2, 4, 4, 4), and
    14 bits at stride 8 with (1, 2, 4, 4).
    """

    bits: int = 32  # d: bits per code; the vocabulary is 2^d and appears nowhere
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)  # one per resolution, finest first
    residual_blocks: int = 2  # per encoder level
    unshuffle: int = 1  # pixel-unshuffle factor before the first and after the last convolution
    norm_groups: int = 32  # 24 where this does not divide the width
    decoder_blocks: int = 0  # per decoder level; 0: residual_blocks + 1, as released
    kernel_size: int = (
        3  # of convolutions; 1: a code depends on its own pixels only, and vice versa
    )

    def __post_init__(self):
        if not self.channel_multipliers:
            raise UserError('tokenizer.channel_multipliers is empty; wanted one per resolution')
        if len(self.channel_multipliers) > _MOST_LEVELS:
            raise UserError(
                f'tokenizer.channel_multipliers has {len(self.channel_multipliers)} numbers; '
                f'wanted {_MOST_LEVELS} at most'
            )
        check_ranges(self, 'tokenizer.', _TOKENIZER_RANGES)
        for multiplier in self.channel_multipliers:
            width = self.base_channels * multiplier
            if width % self.norm_groups and width % FALLBACK_GROUPS:
                raise UserError(
                    f'tokenizer width {width} divides by neither norm_groups {self.norm_groups} '
                    f'nor {FALLBACK_GROUPS}: change tokenizer.base_channels or norm_groups'
                )
        if self.kernel_size not in (1, 3):
            raise UserError(f'tokenizer.kernel_size is {self.kernel_size}; wanted 3 or 1')
        if self.kernel_size == 1 and len(self.channel_multipliers) > 1:
            raise UserError(
                f'tokenizer.channel_multipliers are {self.channel_multipliers}; with kernel_size 1 '
                'wanted a single one, and tokenizer.unshuffle for the stride'
            )

    @property
    def decoder_depth(self) -> int:
        """Residual blocks of each decoder level."""
        return self.decoder_blocks or self.residual_blocks + 1

    @property
    def stride(self) -> int:
        """Pixels per code along an edge."""
        return self.unshuffle * 2 ** (len(self.channel_multipliers) - 1)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The bitwise autoregressive transformer (paper 3.3, table 1)."""

    depth: int
    width: int
    num_heads: int
    bits: int = 32  # d of the tokenizer whose codes it predicts
    mlp_ratio: float = 4.0
    text_channels: int = 2048  # E: width of the text encoder
    text_length: int = 512  # rows of the learned unconditional text
    spatial_patchify: bool = False  # a token has 2x2 codes, 4d bits (8B)
    max_scales: int = 15  # rows of the scale embedding
    drop_path: float = 0.1  # rate of stochastic depth in the last block, linear from 0 in the first
    dtype: str = 'bfloat16'  # of the matrix products inside blocks; the rest is float32
    classifier: str = 'bits'  # 'index': a softmax over the 2^d codes, for comparison alone

    def __post_init__(self):
        check_ranges(self, 'transformer.', _TRANSFORMER_RANGES)
        if self.width % (4 * self.num_heads):
            raise UserError(
                f'transformer.width {self.width} over {self.num_heads} heads: 2-D RoPE wants a '
                'head dim that is a whole multiple of 4; change transformer.width or num_heads'
            )
        if self.width % self.pool_heads:
            raise UserError(
                f'transformer.width {self.width} does not divide over the {self.pool_heads} heads '
                f'that pool {self.text_channels} text channels; change transformer.width'
            )
        # Of a block: 8 D² in two attentions, 2 D F in the feed-forward.
        parameters = self.depth * self.width * (8 * self.width + 2 * self.hidden_width)
        if parameters > MAX_PARAMETERS:
            raise UserError(
                f'transformer.depth {self.depth}, width {self.width} and mlp_ratio '
                f'{self.mlp_ratio:g} make {parameters:.1e} parameters; wanted '
                f'{MAX_PARAMETERS:.0e} at most: lower one of them'
            )
        if self.dtype not in DTYPES:
            raise UserError(f'transformer.dtype is {self.dtype!r}; wanted {", ".join(DTYPES)}')
        if self.classifier not in CLASSIFIERS:
            raise UserError(
                f'transformer.classifier is {self.classifier!r}; wanted {", ".join(CLASSIFIERS)}'
            )
        if self.classifier == 'index' and self.token_bits > MAX_INDEX_BITS:
            raise UserError(
                f"transformer.classifier is 'index' with {self.token_bits} bits per token, a "
                f'softmax over 2^{self.token_bits} numbers; wanted {MAX_INDEX_BITS} bits at most: '
                "set it to 'bits', or take a tokenizer of fewer bits"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def patch_size(self) -> int:
        """Codes per token along an edge: 1, or 2 with spatial patchify."""
        return 2 if self.spatial_patchify else 1

    @property
    def token_bits(self) -> int:
        """Bits per token: d, or 4d with spatial patchify."""
        return self.bits * self.patch_size**2

    @property
    def head_outputs(self) -> int:
        """Logits per token: two for each of its bits, or one for each of the 2^d indices."""
        return 2 * self.token_bits if self.classifier == 'bits' else 2**self.token_bits

    @property
    def hidden_width(self) -> int:
        """F: mlp_ratio · D rounded (half to even) to a multiple of 256, and at least 256."""
        return max(round(self.width * self.mlp_ratio / 256), 1) * 256

    @property
    def pool_heads(self) -> int:
        """Heads of the attentive text pooling: one per 128 text channels (64 above width 4096)."""
        return max(self.text_channels // (64 if self.width > 4096 else 128), 1)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A T5 v1.1 encoder, the architecture of Flan-T5; the defaults are its XL size."""

    vocab_size: int = 32128
    width: int = 2048
    num_layers: int = 24
    num_heads: int = 32
    head_dim: int = 64
    ffn_width: int = 5120
    buckets: int = 32  # of the relative position bias
    max_distance: int = 128  # beyond it all distances share the last bucket

    def __post_init__(self):
        check_ranges(self, 'text.encoder.', _TEXT_RANGES)
        # Half of the buckets serve each direction; the second half of these grow logarithmically.
        if self.buckets % 2:
            raise UserError(
                f'config field text.encoder.buckets is {self.buckets}; wanted an even number'
            )
        if self.max_distance <= self.buckets // 4:
            raise UserError(
                f'config field text.encoder.max_distance is {self.max_distance}; wanted more than '
                f'a quarter of the {self.buckets} buckets'
            )


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Lossy reductions of memory and time; docs/memory.md has their cost in quality."""

    # 'int8': the blocks' kernels, one scale per output channel; 'auto': where `memory_plan` says so
    weights: str = 'full'
    cache: str = 'full'  # 'int8': keys and values of earlier scales; 'auto' likewise
    decoder: str = AUTO  # precision of its convolutions; 'auto' depends on the platform
    unguided_scales: dataclasses.InitVar[int] = 0  # now of SamplingConfig; read until version 0.3

    former_unguided_scales: typing.ClassVar[int] = 0  # what the old keyword gave

    def __post_init__(self, unguided_scales: int):
        for name in ('weights', 'cache'):
            if getattr(self, name) not in (AUTO, 'full', 'int8'):
                raise UserError(
                    f"{name} is {getattr(self, name)!r}; wanted 'full', 'int8' or 'auto'"
                )
        if self.decoder not in (AUTO, *CONVOLUTION_PRECISIONS):
            wanted = ', '.join((AUTO, *CONVOLUTION_PRECISIONS))
            raise UserError(f'decoder is {self.decoder!r}; wanted {wanted}')
        if unguided_scales < 0:
            raise UserError(f'unguided_scales is {unguided_scales}; wanted 0 or more')
        if unguided_scales:
            notice('QuantizationConfig(unguided_scales=...)', 'SamplingConfig(unguided_scales=...)')
            object.__setattr__(self, 'former_unguided_scales', unguided_scales)


@dataclasses.dataclass(frozen=True)
class ModelConfigs:
    """The model's configuration in the config.json of a model folder; absent parts are None.

    Attributes:
      transformer, tokenizer, text: dimensions of the three networks.
      schedule: token grids; of a tokenizer alone, its code grids.
      source: layout of the PyTorch files that the model was imported from, by part.
      extra: JSON that is kept as it is, such as the configuration of the run that made the model.
      trained_with: fingerprint of the tokenizer whose codes the transformer learned; '': unknown.
      text_dtype: of the text encoder's products, not stored; '': the transformer's.
      attention: implementation in generation, not stored; see `attention_choice.choose`.
      text_encoder: memory that holds it in generation, not stored: 'device', 'host', from where
        it moves to the device while it encodes, or 'auto': the host where the device lacks room.
    """

    transformer: TransformerConfig | None = None
    tokenizer: TokenizerConfig | None = None
    text: TextConfig | None = None
    schedule: ScaleSchedule | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trained_with: str = ''
    text_dtype: str = ''
    attention: str = 'auto'
    text_encoder: str = AUTO

    @property
    def text_products(self) -> str:
        """The dtype of the text encoder's matrix products."""
        return self.text_dtype or required(self.transformer, 'transformer').dtype

    @property
    def training_data(self) -> Mapping[str, Any]:
        """The fields `data` of the run that made the model; none of an imported one."""
        return self.extra.get('run', {}).get('data', {})

    @property
    def spatial_patchify(self) -> bool:
        """Whether the tokens of `schedule` have 2x2 codes each."""
        return self.transformer is not None and self.transformer.spatial_patchify

    def problems(self) -> list[str]:
        """Reasons why the parts cannot work together; wrong pairs would generate noise silently."""
        transformer, tokenizer, text = self.transformer, self.tokenizer, self.text
        problems = []
        if transformer and tokenizer and transformer.bits != tokenizer.bits:
            problems.append(
                f'the transformer predicts codes of {transformer.bits} bits, the tokenizer has '
                f'{tokenizer.bits}; use the tokenizer that the transformer was trained with'
            )
        if transformer and text and transformer.text_channels != text.width:
            problems.append(
                f'the transformer reads text of {transformer.text_channels} channels, the text '
                f'encoder gives {text.width}; use the encoder that it was trained with'
            )
        if transformer and self.schedule and len(self.schedule) > transformer.max_scales:
            problems.append(
                f'the schedule has {len(self.schedule)} scales, and transformer.max_scales is '
                f'{transformer.max_scales}; use the schedule that it was trained with'
            )
        return problems


Part = TypeVar('Part')


def required(part: Part | None, name: str) -> Part:
    """A part of a model that its user cannot do without: a configuration, weights, a schedule.

    Raises:
      UserError: it is None; `name` says which part that is.
    """
    if part is None:
        raise UserError(f'the model has no {name}; name a model folder that has all parts')
    return part


def released_tokenizer(transformer: TransformerConfig) -> TokenizerConfig:
    """The released tokenizer that a preset works with, at 16 pixels per token."""
    multipliers = (1, 2, 4, 4) if transformer.spatial_patchify else (1, 2, 4, 4, 4)
    return TokenizerConfig(transformer.bits, channel_multipliers=multipliers)


def pixels_per_token(transformer: TransformerConfig, tokenizer: TokenizerConfig) -> int:
    """Pixels per token along an edge: those per code, times the codes per token."""
    return tokenizer.stride * transformer.patch_size


# Paper table 1 (2.2b is its 2B) and the released checkpoints (2b, 8b). The 8B has tokens of 2x2
# codes of the 14-bit tokenizer; the 20B is assumed to have the same, as its own is not known.
PRESETS: dict[str, TransformerConfig] = {
    '125m': TransformerConfig(depth=12, width=768, num_heads=8),
    '361m': TransformerConfig(depth=16, width=1152, num_heads=12),
    '940m': TransformerConfig(depth=24, width=1536, num_heads=16),
    '2b': TransformerConfig(depth=32, width=2048, num_heads=16),
    '2.2b': TransformerConfig(depth=32, width=2080, num_heads=20),
    '4.7b': TransformerConfig(depth=40, width=2688, num_heads=24),
    '8b': TransformerConfig(depth=40, width=3584, num_heads=28, bits=14, spatial_patchify=True),
    '20b': TransformerConfig(
        depth=58, width=4608, num_heads=36, bits=14, spatial_patchify=True, drop_path=0.25
    ),
}
