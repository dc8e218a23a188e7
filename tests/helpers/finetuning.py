"""A small complete model and the config that fine-tunes it, on images of 16 pixels."""

import runpy

from helpers.models import model_of
from helpers.paths import CONFIGS, VOCABULARY
from helpers.stride4 import EIGHT_BITS as TOKENIZER
from helpers.tiny import lively, tokenizer_variables, transformer_variables

from infinity_jax.config import TextConfig, TransformerConfig
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.weights.model_folder import save_model
from infinity_jax.weights.t5_folder import encoder_shapes

FINETUNE = runpy.run_path(str(CONFIGS / 'finetune.py'))
TRANSFORMER = TransformerConfig(
    depth=2, width=32, num_heads=2, bits=8, text_channels=16, text_length=16, max_scales=3,
    dtype='float32', drop_path=0.1,
)  # fmt: skip
TEXT = TextConfig(vocab_size=1500, width=16, num_layers=1, num_heads=2, head_dim=8, ffn_width=32)


def save(folder, transformer=TRANSFORMER, tokenizer=TOKENIZER, schedule=None, text=TEXT):
    loaded = model_of(
        transformer_config=transformer,
        transformer_params=transformer_variables(transformer)['params'],
        tokenizer_config=tokenizer,
        tokenizer_params=tokenizer_variables(tokenizer)['params'],
        text_config=text,
        text_params=lively(encoder_shapes(text)),
        text_tokenizer=TextTokenizer.from_folder(VOCABULARY),
        schedule=schedule,
    )
    save_model(folder, loaded)
    return folder


def fields(folder, tmp_path, variant='full'):
    """The fine-tuning config for a small model of 16 pixels."""
    config = FINETUNE['get_config'](variant)
    config.init_from, config.run_dir = str(folder), str(tmp_path / 'run')
    config.data.image_size, config.data.ratios, config.data.num_workers = 16, ('1.000',), 0
    config.batch_size, config.eval_batches, config.steps = 8, 1, 2
    config.accumulate_steps, config.remat = 1, 'none'  # quicker to compile
    return config
