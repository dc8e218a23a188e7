"""Configuration of a text-to-image run, and the token grids that it gives; reads no file."""

import dataclasses

from infinity_jax.config import DTYPES, ModelConfigs, TextConfig, TransformerConfig, required
from infinity_jax.errors import UserError
from infinity_jax.ranges import RATE, Range, check_ranges
from infinity_jax.runtime.local_files import check_paths
from infinity_jax.scales import BUDGET_OF_EDGE, SQUARE, Grid, ScaleSchedule, released_name
from infinity_jax.training.config import RunConfig
from infinity_jax.training.transformer.partial_start import check_parts
from infinity_jax.training.transformer.self_correction import STRENGTH_STEP
from infinity_jax.transformer.attention_choice import IMPLEMENTATIONS
from infinity_jax.transformer.layer_loop import check_layers
from infinity_jax.transformer.lora import LoraConfig
from infinity_jax.transformer.remat import check_remat

SMALL_WIDTH = 512  # see `RunConfig.small`: width 192 gains by a device per core, 768 loses


@dataclasses.dataclass(frozen=True)
class TextTraining:
    """The text encoder: a frozen one from a folder, or one that is trained as well."""

    folder: str = ''  # Hugging Face folder or org/name, of encoder or vocabulary; '': the demo's
    encoder: TextConfig | None = None  # sizes of a new encoder; None: the folder's, with weights
    train: bool = False  # together with the transformer
    dtype: str = ''  # of a frozen encoder's products; '': float16 or the transformer's, by device

    def __post_init__(self):
        if self.dtype not in ('', *DTYPES):
            raise UserError(
                f'config field text.dtype is {self.dtype!r}; wanted {", ".join(DTYPES)}'
            )
        check_paths(self, 'text.', ('folder',))


@dataclasses.dataclass(frozen=True)
class SelfCorrection:
    """Random bit flips in training, which later scales learn to correct (paper 3.4)."""

    max_strength: float = 0.3  # flip probabilities are sampled from 0, 0.01, … to this; 0: none
    group: int = 0  # images that share a strength; 0: the whole batch. Released: 4
    per_image: bool = False  # the same as group 1; set, it replaces group
    requantize: bool = True  # later scales learn to correct the flips; False: to ignore them

    def __post_init__(self):
        check_ranges(self, 'self_correction.', {'max_strength': RATE, 'group': Range(0, 2**20)})
        if 0 < self.max_strength < STRENGTH_STEP:
            raise UserError(
                f'config field self_correction.max_strength is {self.max_strength}; wanted 0, or '
                f'{STRENGTH_STEP} or more: strengths are its multiples'
            )

    @property
    def images_per_strength(self) -> int:
        """Images that share a strength; 0: the whole batch."""
        return 1 if self.per_image else self.group


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2IConfig(RunConfig):
    """Configuration of `configs/t2i.py` and `configs/finetune.py`."""

    transformer: TransformerConfig
    text: TextTraining
    tokenizer: str = ''  # model folder that holds the frozen tokenizer; '': the demo's
    grids: tuple[tuple[int, ...], ...] = ()  # of the codes; (): those of the tokenizer
    self_correction: SelfCorrection = SelfCorrection()
    condition_drop: float = 0.1  # share of captions that the learned unconditional text replaces
    reweight_scales: bool = True  # tokens weigh 1/√(h·w) of their scale in the loss
    attention: str = 'auto'  # 'auto', 'xla', 'cudnn' or 'splash', see docs/scaling.md
    remat: str = 'none'  # what the backward pass recomputes, see `remat.POLICIES`
    layers: str = 'auto'  # 'scanned', 'unrolled' or 'auto', see `layer_loop.unrolled`
    encode_once: str = 'auto'  # 'auto' or 'never', see `encoded_once.keeps_features`
    lora: LoraConfig = LoraConfig()  # adapters are trained instead of the transformer
    new_parts: tuple[str, ...] = ()  # of init_from's transformer, start with new weights

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, '', {'condition_drop': RATE})
        check_paths(self, '', ('tokenizer',))
        check_remat(self.remat)
        check_layers(self.layers)
        if self.encode_once not in ('auto', 'never'):
            raise UserError(f"encode_once is {self.encode_once!r}; wanted 'auto' or 'never'")
        check_parts(self.new_parts)
        if self.attention not in IMPLEMENTATIONS:
            raise UserError(f'attention is {self.attention!r}; wanted {", ".join(IMPLEMENTATIONS)}')
        if self.lora.rank and self.new_parts:
            raise UserError('lora trains adapters alone; leave new_parts empty')
        if self.lora.rank and self.text.train:
            raise UserError('lora trains adapters alone; set text.train to False')
        for source in (*self.data.sources, *self.data.held_out):
            if not source.has_captions:
                remedy = "set its kind to 'sidecar' (NAME.txt next to each image), 'imagefolder' "
                remedy += '(metadata.jsonl or .csv) or another one with captions'
                if source.kind != 'folder':
                    remedy = 'set its text_field'
                raise UserError(
                    f'data source {source.kind} {source.path} has no captions, which this task '
                    f'reads; {remedy}'
                )

    @property
    def small(self) -> bool:
        return self.transformer.width <= SMALL_WIDTH

    @property
    def frozen_dtype(self) -> str:
        """Dtype of the transformer's kernels where LoRA freezes them."""
        return self.lora.base_dtype or self.transformer.dtype


def run_schedule(config: T2IConfig, stored: ScaleSchedule | None, patchify: bool) -> ScaleSchedule:
    """The token grids: by the code grids that the tokenizer was trained with, or as released.

    Args:
      stored: the schedule in the tokenizer's folder. A released one is not used: it is of the image
        size of another stage.
      patchify: whether a token of `stored` holds 2x2 codes.

    Raises:
      UserError: there is none for the run's images, or a grid is odd and tokens hold 2x2 codes.
    """
    if config.grids or stored is not None and released_name(stored) is None:
        code_grids = _code_grids(config, stored, patchify)
        patch = config.transformer.patch_size
        if any(n % patch for grid in code_grids for n in grid):
            raise UserError(
                f'transformer.spatial_patchify puts 2x2 codes into a token, but the tokenizer has '
                f'grids {code_grids}; switch it off or use a tokenizer with even grids'
            )
        return ScaleSchedule.free((h // patch, w // patch) for h, w in code_grids)
    if config.data.image_size not in BUDGET_OF_EDGE:
        raise UserError(
            f'data.image_size is {config.data.image_size} and the tokenizer names no schedule '
            f'of its own; wanted one of {", ".join(map(str, BUDGET_OF_EDGE))}'
        )
    return ScaleSchedule.for_image(1.0, BUDGET_OF_EDGE[config.data.image_size])


def _code_grids(
    config: T2IConfig, stored: ScaleSchedule | None, patchify: bool
) -> tuple[Grid, ...]:
    """The run's own grids, which must end as those of the tokenizer do, or the tokenizer's."""
    own = ScaleSchedule.free(config.grids).grids if config.grids else ()
    trained = stored.code_grids(patchify) if stored is not None else own
    if own and own[-1] != trained[-1]:
        raise UserError(
            f'config field grids ends in {own[-1]}; the tokenizer makes {trained[-1]} codes of an '
            'image, wanted as the last grid'
        )
    return own or trained


def bucket_schedules(config: T2IConfig, configs: ModelConfigs) -> tuple[ScaleSchedule, ...]:
    """The schedules of a run, one per ratio; `configs.schedule` is that of the square.

    Raises:
      UserError: several ratios are wanted and the square's schedule is not a released one.
    """
    names, budget = config.data.bucket_names, BUDGET_OF_EDGE.get(config.data.image_size)
    square = required(configs.schedule, 'schedule')
    if names == (SQUARE,):
        return (square,)
    if budget is None or square != ScaleSchedule.for_image(SQUARE, budget):
        raise UserError(
            f'data.ratios are {names}, but the tokenizer is made for squares with grids '
            f"{square.grids}; set data.ratios to ('{SQUARE}',)"
        )
    return tuple(ScaleSchedule.for_image(name, budget) for name in names)
