"""Adapters applied at generation: the images of a folder that they were merged into."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.finetuning import TRANSFORMER, save
from helpers.stride4 import GRIDS
from helpers.tiny import lively
from PIL import Image

from infinity_jax.cli import main
from infinity_jax.config import QuantizationConfig
from infinity_jax.errors import UserError
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.warmup import GenerationRequest
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.training.transformer import emoji_model
from infinity_jax.transformer.int8 import SCALE, quantize_kernels
from infinity_jax.transformer.lora import LORA_A, LoraConfig, init_adapters
from infinity_jax.transformer.model import transformer_shapes
from infinity_jax.weights.adapter_file import merge_into_folder, save_adapter
from infinity_jax.weights.model_folder import load_model, save_model
from infinity_jax.weights.peft_adapter import save_peft

pytestmark = pytest.mark.numeric
PROMPTS = ('a red apple', 'a green leaf')
INT8 = QuantizationConfig(weights='int8')


def adapters_of(config, seed):
    shapes = transformer_shapes(TRANSFORMER, boxed=True)
    start = jax.eval_shape(lambda key: init_adapters(key, shapes, config), jax.random.key(0))
    return lively(nn.unbox(start), seed)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A model folder, adapters of two kinds for it, and the arguments that name both."""
    place = tmp_path_factory.mktemp('models')
    folder = save(place / 'base', schedule=ScaleSchedule.free(GRIDS))
    some = LoraConfig(rank=2, alpha=2.0, matrices=('ffn', 'self_attention.qkv'))
    every = LoraConfig(rank=1, alpha=1.0)
    save_adapter(place / 'one.safetensors', adapters_of(some, 1), some)
    save_peft(place / 'two', adapters_of(every, 2), every)
    return folder, [f'{place / "one.safetensors"}:0.8', f'{place / "two"}:-0.5']


def pixels(pipeline):
    return pipeline(list(PROMPTS)).pixels


def test_adapters_give_the_images_of_the_merged_folder(files, tmp_path):
    folder, adapters = files
    merge_into_folder(folder, adapters, tmp_path / 'merged')
    wanted = pixels(InfinityPipeline.from_pretrained(tmp_path / 'merged'))
    ours = InfinityPipeline.from_pretrained(folder, adapters=adapters)
    np.testing.assert_array_equal(pixels(ours), wanted)
    for others in ([], adapters[:1]):
        other = pixels(InfinityPipeline.from_pretrained(folder, adapters=others))
        assert (other != wanted).mean() > 0.1
    # Over several devices they stay next to the kernels.
    mesh = make_mesh(MeshConfig(data=1, tensor=2), jax.devices()[:2])
    split = pixels(InfinityPipeline.from_pretrained(folder, adapters=adapters, mesh=mesh))
    assert np.abs(split.astype(int) - wanted).max() <= 1


def test_an_8_bit_base_is_not_rounded_again(files, tmp_path):
    folder, adapters = files
    loaded = load_model(folder)
    rounded = quantize_kernels(loaded.transformer_params)
    for outer, inner in (name.split('.') for name in LoraConfig().targets):
        matrix = rounded['blocks'][outer][inner]
        matrix['kernel'] = matrix['kernel'] * matrix.pop(SCALE)[:, None]
    save_model(tmp_path / 'rounded', dataclasses.replace(loaded, transformer_params=rounded))
    wanted = pixels(InfinityPipeline.from_pretrained(tmp_path / 'rounded', adapters=adapters))
    request = GenerationRequest(PROMPTS, 1, None, SamplingConfig())
    pipeline = InfinityPipeline.from_pretrained(
        folder, adapters=adapters, quantization=INT8, request=request
    )
    prepared = set(pipeline._executables._ready)
    ours = pixels(pipeline)
    assert np.abs(ours.astype(int) - wanted).max() <= 1
    assert set(pipeline._executables._ready) == prepared  # nothing else was compiled


def test_the_command(files, tmp_path, capsys):
    folder, adapters = files
    flags = [part for adapter in adapters for part in ('--adapter', adapter)]
    (out := tmp_path / 'images').mkdir()
    main(['generate', *PROMPTS, '--checkpoint', str(folder), *flags, '--out', str(out)])
    wanted = pixels(InfinityPipeline.from_pretrained(folder, adapters=adapters))
    image = Image.open(sorted(out.glob('*.png'))[1])
    np.testing.assert_array_equal(np.asarray(image), wanted[1])
    assert image.text['adapters'] == ' '.join(adapters)
    for adapter, message in (
        ('nowhere.safetensors', 'nowhere.safetensors: cannot be read'),
        (':0.5', "':0.5' names no file; wanted PATH or PATH:STRENGTH"),
        (f'{folder}', 'holds neither adapter.safetensors nor adapter_config.json of PEFT'),
    ):
        with pytest.raises(SystemExit):
            main(['generate', 'x', '--checkpoint', str(folder), '--adapter', adapter])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize('weights', ['full', 'int8'])
def test_the_demo_is_evaluated_with_them(files, tmp_path, monkeypatch, weights):
    folder, adapters = files
    placed = []

    def place(loaded, *_):
        placed.append(loaded.transformer_params)
        raise UserError('seen')

    monkeypatch.setattr(emoji_model, 'place_model', place)
    flags = [part for adapter in adapters for part in ('--adapter', adapter)]
    command = ['evaluate', 'demo', '--checkpoint', str(folder), '--out', str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*command, *flags, '--weights', weights])
    wanted = load_model(folder).transformer_params
    if weights == 'full':
        merge_into_folder(folder, adapters, tmp_path / 'merged')
        wanted = load_model(tmp_path / 'merged').transformer_params
    kernels = [params['blocks']['ffn']['up']['kernel'] for params in (*placed, wanted)]
    np.testing.assert_array_equal(*kernels)
    assert (LORA_A in placed[0]['blocks']['ffn']['up']) == (weights == 'int8')


def test_another_model_is_refused_before_weights_are_read(files):
    _, adapters = files
    with pytest.raises(UserError, match='has A, B of shapes .* name the model that the adapters'):
        InfinityPipeline.from_pretrained(adapters=adapters)  # the demo
