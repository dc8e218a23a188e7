"""Configuration of a tokenizer's training, and the check that its fields agree."""

import dataclasses
import math

from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.ranges import Range, check_ranges
from infinity_jax.runtime.local_files import check_paths
from infinity_jax.scales import BUDGETS, RATIOS, SQUARE, STRIDE, Grid, ScaleSchedule
from infinity_jax.training.config import RunConfig
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.tokenizer.discriminator import smallest_image
from infinity_jax.training.tokenizer.losses import INVERSE_TEMPERATURE
from infinity_jax.training.tokenizer.lpips import MIN_EDGE
from infinity_jax.training.tokenizer.noise import QuantizerTraining


@dataclasses.dataclass(frozen=True)
class TokenizerLosses:
    """Weights of the loss terms. Released: l1 1, LPIPS 1, commitment 4·0.25, entropy 4·0.1."""

    l1: float = 1.0
    l2: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.1
    inverse_temperature: float = INVERSE_TEMPERATURE  # β of the entropy term; see its docstring
    perceptual: float = 0.0  # LPIPS; needs config.vgg_weights and config.lpips_heads
    truncated: float = 0.0  # l1 and l2 of an image decoded after a random number of scales

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise UserError(
                    f'config field losses.{field.name} is {value}; wanted 0 or more, and finite'
                )
        if self.inverse_temperature == 0:
            raise UserError(
                'config field losses.inverse_temperature is 0.0; wanted a positive number'
            )


SMALL_CHANNELS = 64  # of the first resolution, see `RunConfig.small`
_ADVERSARIAL_RANGES = {
    'layers': Range(0, 10),
    'channels': Range(0, 2**12),
    'start_step': Range(0, 10**9),
}


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """The discriminator and its term in the loss; off unless `weight` is set."""

    weight: float = 0.0  # of the adversarial term; 0.3 as published
    start_step: int = 0  # the first with adversarial losses; 50,000 in stage 1
    adaptive: bool = False  # scale the term to the reconstruction gradient at the last convolution
    adaptive_limit: float = 1e4  # of that scale, as in VQGAN
    channels: int = 64  # of the discriminator's first layer
    layers: int = 3  # stride-2 convolutions; 3 give patches of 70² pixels
    lecam: float = 0.001  # weight of LeCam in the discriminator's loss; 0: none
    lecam_decay: float = 0.999  # of its moving averages, reached through (1 + n) / (10 + n)
    optimizer: OptimizerConfig | None = None  # of the discriminator; None: as the tokenizer's

    def __post_init__(self):
        check_ranges(self, 'adversarial.', _ADVERSARIAL_RANGES)
        if self.layers < 1 or self.channels < 4 or self.channels % 4:
            raise UserError(
                f'adversarial.layers is {self.layers} and adversarial.channels {self.channels}; '
                'wanted 1 or more layers and a multiple of 4'
            )
        for name in ('weight', 'start_step', 'lecam', 'adaptive_limit'):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f'adversarial.{name} is {value}; wanted 0 or more, and finite')
        if not 0 <= self.lecam_decay < 1:
            raise UserError(
                f'adversarial.lecam_decay is {self.lecam_decay}; wanted 0 up to below 1'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerRunConfig(RunConfig):
    """Configuration of `configs/tokenizer.py`."""

    tokenizer: TokenizerConfig
    # (h, w) of each scale, the last image size / stride; (): the released ones of each image shape
    grids: tuple[tuple[int, ...], ...] = ()
    losses: TokenizerLosses = TokenizerLosses()
    quantizer: QuantizerTraining = QuantizerTraining()
    adversarial: AdversarialConfig = AdversarialConfig()
    freeze_encoder: bool = False  # train the decoder alone: all bits stay as they are
    vgg_weights: str = ''  # VGG-16 in torchvision's format; needs losses.perceptual above 0
    lpips_heads: str = ''  # lin0 to lin4 in the LPIPS package's format
    precision: str = 'highest'  # of products in training: 'highest', or 'default' (faster on GPU)
    dtype: str = 'float32'  # of convolutions in training; 'bfloat16' halves their memory
    remat: str = 'none'  # 'full': the backward pass recomputes residual blocks

    def __post_init__(self):
        super().__post_init__()
        check_paths(self, '', ('vgg_weights', 'lpips_heads'))

    @property
    def small(self) -> bool:
        return self.tokenizer.base_channels <= SMALL_CHANNELS

    def code_grids(self, image: tuple[int, int]) -> tuple[Grid, ...]:
        """The grids of an image of (height, width) pixels.

        Raises:
          UserError: there are none for that shape.
        """
        stride = self.tokenizer.stride
        if self.grids:
            schedule = ScaleSchedule.free(self.grids)
            if schedule.image_size(stride) != tuple(image):
                raise UserError(
                    f'grids end in {self.grids[-1]}, at stride {stride} an image of '
                    f'{schedule.image_size(stride)}, but images are {tuple(image)} '
                    f'(data.image_size is {self.data.image_size}); change one of them'
                )
            return schedule.grids
        if stride not in (STRIDE, STRIDE // 2):
            raise UserError(
                f'released schedules are for stride {STRIDE}, or {STRIDE // 2} with patchify, and '
                f'this tokenizer has stride {stride}; set config.grids'
            )
        return released_schedule(image).code_grids(patchify=stride < STRIDE)


def released_schedule(image: tuple[int, int]) -> ScaleSchedule:
    """The released schedule whose images have (height, width) pixels."""
    for ratio in RATIOS:
        for budget in BUDGETS:
            schedule = ScaleSchedule.for_image(ratio, budget)
            if schedule.image_size() == tuple(image):
                return schedule
    raise UserError(
        f'no released schedule is for images of {tuple(image)} pixels; set config.grids, or '
        'data.image_size to 256, 512, 768 or 1024'
    )


def check(config: TokenizerRunConfig) -> None:
    """Raises `UserError` where schedule, stride and image size disagree."""
    size = config.data.image_size
    if any(source.kind == 'features' for source in config.data.sources + config.data.held_out):
        raise UserError(
            'data.sources has one of kind features, but tokenizers are trained on images; name '
            'the source that these were made of'
        )
    config.code_grids((size, size))
    if config.grids and config.data.bucket_names != (SQUARE,):
        raise UserError(
            f'data.ratios is {config.data.ratios}, but config.grids are for one shape; clear '
            'config.grids to take the released ones of each'
        )
    if config.freeze_encoder and not config.init_from:
        raise UserError(
            'freeze_encoder is set without init_from; name the model folder whose encoder is kept'
        )
    if config.losses.truncated and config.quantizer.scale_drop and not config.quantizer.keep_first:
        # An empty total decodes to one image for all inputs, from which nothing can be learned.
        raise UserError(
            'losses.truncated with quantizer.scale_drop could leave no scale of an image to '
            'decode; set quantizer.keep_first'
        )
    if config.precision not in ('highest', 'default'):
        raise UserError(f"precision is {config.precision!r}; wanted 'highest' or 'default'")
    if config.dtype not in ('float32', 'bfloat16'):
        raise UserError(f"dtype is {config.dtype!r}; wanted 'float32' or 'bfloat16'")
    if config.remat not in ('none', 'full'):
        raise UserError(f"remat is {config.remat!r}; wanted 'none' or 'full'")
    smallest = smallest_image(config.adversarial.layers) if config.adversarial.weight else 1
    if size < smallest:
        raise UserError(
            f'data.image_size is {size}, too small for a discriminator of '
            f'{config.adversarial.layers} layers, which wants {smallest}; lower adversarial.layers'
        )
    if config.losses.perceptual and config.vgg_weights and size < MIN_EDGE:
        raise UserError(
            f'data.image_size is {size}; LPIPS wants {MIN_EDGE} or more: set losses.perceptual to 0'
        )
