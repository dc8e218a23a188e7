"""The frozen networks of a text-to-image run: read from their folders, put on the devices."""

import pathlib
from typing import Any

import numpy as np
from jax.sharding import Mesh

from infinity_jax.config import ModelConfigs, pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import BUDGET_OF_EDGE
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.training.init_from import check_shapes, torch_source
from infinity_jax.training.transformer.config import T2IConfig, run_schedule
from infinity_jax.transformer.card_dtype import check_dtype
from infinity_jax.transformer.int8 import quantize_on_devices
from infinity_jax.transformer.model import check_schedule, transformer_shapes
from infinity_jax.weights.fingerprint import partner_fingerprint
from infinity_jax.weights.model_folder import LoadedModel, load_model
from infinity_jax.weights.placement import (
    place,
    place_text_encoder,
    platform_of,
    with_text_dtype,
)
from infinity_jax.weights.t5_folder import load_encoder


def load_parts(config: T2IConfig, mesh: Mesh | None = None) -> LoadedModel:
    """Reads the tokenizer, the vocabulary and, unless a new one is trained, the text encoder.

    Args:
      mesh: the devices, each of whose shards is read by itself; None gives numpy arrays.

    Raises:
      UserError: a folder is missing, or the parts do not fit the configuration.
    """
    _check_named(config)
    stored = load_model(config.tokenizer or DEMO_FOLDER, parts=('tokenizer',), mesh=mesh)
    if stored.tokenizer_params is None:
        raise UserError(f'{config.tokenizer}: holds no tokenizer; train one or name another folder')
    folder = _text_folder(config)
    text_tokenizer = run_tokenizer(config)
    text, text_params = config.text.encoder, None
    if text is None:
        # A frozen encoder keeps the file's dtype until `place_frozen` casts its shards.
        dtype = np.float32 if config.text.train else None
        text, text_params = load_encoder(folder, dtype, mesh)
    configs = ModelConfigs(
        transformer=config.transformer,
        tokenizer=stored.configs.tokenizer,
        text=text,
        schedule=run_schedule(config, stored.configs.schedule, stored.configs.spatial_patchify),
        source={**stored.configs.source, **torch_source(config.init_from)},
        extra=stored.configs.extra,
        trained_with=partner_fingerprint(
            required(stored.configs.tokenizer, 'tokenizer'), stored.tokenizer_params
        ),
        attention=config.attention,
    )
    configs = with_run_text_dtype(config, configs, mesh)
    _check_parts(config, configs, text_tokenizer.vocab_size, folder)
    return LoadedModel(
        configs,
        tokenizer_params=stored.tokenizer_params,
        text_params=text_params,
        text_tokenizer=text_tokenizer,
    )


def check_card(config: T2IConfig, lack: str) -> None:
    """Raises `UserError` where the run's products are bfloat16 and the card lacks it.

    Args:
      config: the run.
      lack: see `card_dtype.for_card`.
    """
    remedy = "set it to 'float32' (--config.transformer.dtype=float32)"
    check_dtype(config.transformer.dtype, lack, 'config field transformer.dtype', remedy)


def check_base(config: T2IConfig) -> None:
    """Raises `UserError` where adapters have no weights to be added to; a plan needs none."""
    if config.lora.rank and not config.init_from:
        raise UserError(
            f'lora.rank is {config.lora.rank} and config.init_from empty: name the model folder '
            'whose weights the adapters are added to'
        )


def with_run_text_dtype(
    config: T2IConfig, configs: ModelConfigs, mesh: Mesh | None = None
) -> ModelConfigs:
    """The configurations with the dtype of the text encoder in a run; a trained one's is ours."""
    own = config.transformer.dtype if config.text.train else config.text.dtype
    return with_text_dtype(configs, own, platform_of(mesh))


def _check_named(config: T2IConfig) -> None:
    """Raises `UserError` where a model of the paper's image sizes would get the demo's parts."""
    if config.data.image_size not in BUDGET_OF_EDGE:
        return
    missing = []
    if not config.tokenizer:
        missing.append(
            f'config.tokenizer is empty: name a model folder with a tokenizer of '
            f'{config.transformer.bits} bits (infinity-jax convert from-torch, or '
            'configs/tokenizer.py)'
        )
    if not config.text.folder and config.text.encoder is None:
        missing.append(
            'config.text.folder is empty: name a Hugging Face folder of a T5 encoder of width '
            f'{config.transformer.text_channels}; Flan-T5-XL has 2048'
        )
    if missing:
        raise UserError('; '.join(missing))


def _check_parts(
    config: T2IConfig, configs: ModelConfigs, vocab_size: int, text_folder: str | pathlib.Path
) -> None:
    """Raises `UserError` with every reason why the parts do not fit the run or each other."""
    schedule = required(configs.schedule, 'schedule')
    tokenizer = required(configs.tokenizer, 'tokenizer')
    text = required(configs.text, 'text encoder')
    check_schedule(config.transformer, schedule)
    problems = configs.problems()
    if config.text.encoder is not None and not config.text.train:
        problems.append('text.encoder describes a new text encoder, so set text.train to True')
    if text.vocab_size < vocab_size:
        problems.append(
            f'text.encoder.vocab_size is {text.vocab_size}, below the {vocab_size} tokens '
            f'of {text_folder}; raise it'
        )
    stride = pixels_per_token(config.transformer, tokenizer)
    size = schedule.image_size(stride)
    if size != (config.data.image_size,) * 2:
        problems.append(
            f'data.image_size is {config.data.image_size}, but the tokenizer is made for '
            f'images of {size}; change one of them'
        )
    if problems:
        raise UserError('; '.join(problems))


def place_frozen(config: T2IConfig, loaded: LoadedModel, mesh: Mesh) -> dict[str, Any]:
    """The frozen parameters, split over the mesh: {'tokenizer'}, and {'text'} unless it is trained.

    The tokenizer is float32, since signs decide bits; the text encoder's matrices have the dtype of
    its products. With LoRA the transformer is frozen as well, its kernels in
    `T2IConfig.frozen_dtype`.
    """
    params = required(loaded.tokenizer_params, 'tokenizer')
    tokenizer = required(loaded.configs.tokenizer, 'tokenizer')
    frozen = {'tokenizer': place(params, 'float32', tokenizer, mesh)}
    if not config.text.train:
        frozen['text'] = place_text_encoder(
            required(loaded.text_params, 'text encoder'), loaded.configs, mesh
        )
    if config.lora.rank:
        frozen['transformer'] = _frozen_transformer(config, mesh)
    return frozen


def _frozen_transformer(config: T2IConfig, mesh: Mesh) -> Any:
    """The transformer of `config.init_from`; its tensors keep the file's dtype until they are cast.

    Raises:
      UserError: it has other dimensions than the configuration.
    """
    params = load_model(config.init_from, None, ('transformer',), mesh).transformer_params
    check_shapes(config.init_from, transformer_shapes(config.transformer), params or {})
    dtype = config.frozen_dtype
    if dtype == 'int8':
        return place(quantize_on_devices(params or {}), 'float32', config.transformer, mesh)
    return place(params or {}, dtype, config.transformer, mesh)


def frozen_text_params(config: T2IConfig) -> dict[str, Any]:
    """The weights of a frozen text encoder as numpy arrays, float32."""
    return load_encoder(_text_folder(config))[1]


def run_tokenizer(config: T2IConfig) -> TextTokenizer:
    """The tokenizer of a run's captions; raises `UserError` if there is none."""
    return TextTokenizer.from_folder(_text_folder(config))


def warn_of_unknown(tokenizer: TextTokenizer, captions: list[str], text_length: int) -> None:
    """Prints one line if captions hold characters that the vocabulary lacks."""
    unknown = tokenizer.unknown_characters(captions, text_length)
    characters = ''.join(dict.fromkeys(''.join(unknown)))
    if characters:
        print(
            f'{sum(map(bool, unknown))} of the first {len(captions)} captions hold characters that '
            f'the vocabulary lacks, such as {characters[:20]!r}: each run of them is read as the '
            'same unknown token'
        )


def _text_folder(config: T2IConfig) -> str | pathlib.Path:
    """The folder or repository of the text encoder."""
    return config.text.folder or DEMO_FOLDER / 'text_encoder'
