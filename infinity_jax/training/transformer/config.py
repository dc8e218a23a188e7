"""TODO: docstring."""

import dataclasses

from infinity_jax.config import TextConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.training.config import RunConfig
from infinity_jax.training.init_from import with_model_fields
from infinity_jax.transformer.attention_ops import IMPLEMENTATIONS
from infinity_jax.transformer.lora import LoraConfig
from infinity_jax.transformer.remat import check_remat


@dataclasses.dataclass(frozen=True)
class TextTraining:
    """The text encoder: a frozen one from a folder, or a new one trained along."""

    folder: str = ''  # Hugging Face folder or org/name, of encoder or vocabulary; '': the demo's
    encoder: TextConfig | None = None  # sizes of a new encoder; None: the folder's, with weights
    train: bool = False  # along with the transformer


@dataclasses.dataclass(frozen=True)
class SelfCorrection:
    """Bits flipped while training, for later scales to repair (paper 3.4)."""

    max_strength: float = 0.3  # flip probabilities are drawn from 0, 0.01, … to this; 0: none
    per_image: bool = False  # one strength an image instead of one for the whole batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2IConfig(RunConfig):
    """Configuration of `configs/t2i.py` and `configs/finetune.py`."""

    filled_in = staticmethod(with_model_fields)  # before the fields are read

    transformer: TransformerConfig
    text: TextTraining
    tokenizer: str = ''  # model folder that holds the frozen tokenizer; '': the demo's
    self_correction: SelfCorrection = SelfCorrection()
    condition_drop: float = 0.1  # share of captions that the learned unconditional text replaces
    reweight_scales: bool = True  # tokens weigh 1/√(h·w) of their scale in the loss
    attention: str = 'auto'  # 'auto', 'xla', 'cudnn' or 'splash', see docs/scaling.md
    remat: str = 'none'  # what the backward pass recomputes, see `remat.POLICIES`
    accumulate_steps: int = 1  # parts of a batch that are worked on one after the other
    lora: LoraConfig = LoraConfig()  # adapters are trained instead of the transformer

    def __post_init__(self):
        super().__post_init__()
        check_remat(self.remat)
        if self.attention not in IMPLEMENTATIONS:
            raise UserError(f'attention is {self.attention!r}; wanted {", ".join(IMPLEMENTATIONS)}')
        if self.lora.rank and not self.init_from:
            raise UserError(
                f'lora.rank is {self.lora.rank} and config.init_from empty: name the model folder '
                'whose weights the adapters are added to'
            )
        if self.lora.rank and self.text.train:
            raise UserError('lora trains adapters alone; set text.train to False')
        for source in (*self.data.sources, *self.data.held_out):
            if source.kind == 'folder':
                raise UserError(
                    f'data source folder {source.path} has no captions, which this task reads; '
                    'wanted jsonl, tar, tfds or emoji'
                )
