"""Continuous autoencoders: read as torch computes them, and a start for tokenizers.

`golden/continuous_vae` holds a small autoencoder made of plain PyTorch layers (Conv2d, GroupNorm of
four groups, nearest interpolation) under LDM's names, random weights, no attention, `quant_conv` 12
to 8 and `post_quant_conv` 4 to 6 channels, the latter without a bias; and pixels, their mean and
what the decoder made of it.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import paths
from helpers.torch_files import write_pth

from infinity_jax.cli import main
from infinity_jax.config import TokenizerConfig
from infinity_jax.convert.continuous_vae import is_continuous, read_continuous
from infinity_jax.convert.importing import from_torch
from infinity_jax.convert.plan import to_torch
from infinity_jax.convert.state_dict import open_tokenizer
from infinity_jax.data.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.sharding import make_mesh, to_host
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.training.batches import put_batch
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.training.tokenizer.task import make_task
from infinity_jax.weights.model_folder import load_model

FOLDER = paths.GOLDEN / 'continuous_vae'
GROUPS = {'tokenizer.norm_groups': 4}
CONFIG = TokenizerConfig(4, 4, (1, 2), residual_blocks=1, norm_groups=4)


def stored():
    return safetensors.numpy.load_file(FOLDER / 'vae.safetensors')


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def without_quant_conv(arrays):
    return {name: array for name, array in arrays.items() if 'quant_conv' not in name}


def released_names(tmp_path):
    """The same tensors as the released code would name them, by the export of an import."""
    arrays = without_quant_conv(stored())
    bias = arrays['encoder.conv_out.bias']
    weight = arrays['encoder.conv_out.weight']
    half = {'encoder.conv_out.weight': weight[:6], 'encoder.conv_out.bias': bias[:6]}
    safetensors.numpy.save_file(arrays | half, tmp_path / 'half.safetensors')
    from_torch(tmp_path / 'half', tokenizer=tmp_path / 'half.safetensors', overrides=GROUPS)
    model = load_model(tmp_path / 'half')
    renamed = to_torch(model.configs.tokenizer, model.tokenizer_params)
    renamed |= {'encoder.conv_out.conv.weight': weight, 'encoder.conv_out.conv.bias': bias}
    return {name: array for name, array in renamed.items() if 'lfq' not in name}


def imported(tmp_path, arrays, capsys):
    """The model folder of a file, by the command, and what it printed."""
    capsys.readouterr()
    path, folder = tmp_path / 'x.safetensors', tmp_path / 'm'
    safetensors.numpy.save_file(arrays, path)
    main(['convert', 'from-torch', '--tokenizer', str(path), '--out', str(folder),
          '--set', 'tokenizer.norm_groups=4'])  # fmt: skip
    return load_model(folder), capsys.readouterr().out


def test_mean_and_image_are_those_of_torch(tmp_path):
    from_torch(tmp_path / 'm', tokenizer=FOLDER / 'vae.safetensors', overrides=GROUPS)
    model = load_model(tmp_path / 'm')
    assert model.configs.tokenizer == CONFIG
    wanted = safetensors.numpy.load_file(FOLDER / 'arrays.safetensors')
    apply = Autoencoder(CONFIG).apply
    variables = {'params': model.tokenizer_params}
    mean = apply(variables, wanted['pixels'], method=Autoencoder.encode)
    np.testing.assert_allclose(mean, wanted['mean'], atol=1e-5)
    decoded = apply(variables, wanted['mean'], method=Autoencoder.decode)
    np.testing.assert_allclose(decoded, wanted['decoded'], atol=1e-5)


@pytest.mark.parametrize('names', ['latent diffusion', 'released'])
def test_kernels_come_through_and_what_does_not_is_said(tmp_path, capsys, names):
    plain = without_quant_conv(stored())
    arrays = plain if names == 'latent diffusion' else released_names(tmp_path)
    extra = {
        f'encoder.mid.attn_1.{layer}.{leaf}': noise(8)
        for layer in ('norm', 'q', 'k', 'v', 'proj_out')
        for leaf in ('weight', 'bias')
    }
    extra |= {'decoder.up.1.attn.0.q.weight': noise(8), 'loss.logvar': noise(1)}
    model, said = imported(tmp_path, arrays | extra, capsys)
    assert model.configs.tokenizer.bits == 6
    ours = model.tokenizer_params
    for name, kernel in {
        'encoder.down.0.block.0.conv1': ours['encoder']['down_0']['block_0']['conv1'],
        'encoder.down.0.downsample.conv': ours['encoder']['down_0']['downsample'],
        'decoder.up.1.block.1.conv2': ours['decoder']['up_1']['block_1']['conv2'],
        'decoder.up.0.block.0.nin_shortcut': ours['decoder']['up_0']['block_0']['shortcut'],
        'decoder.up.1.upsample.conv': ours['decoder']['up_1']['upsample'],
    }.items():
        weight = plain[f'{name}.weight'].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(kernel['kernel'], weight)
        np.testing.assert_array_equal(kernel['bias'], plain[f'{name}.bias'])
    mean = plain['encoder.conv_out.weight'][:6].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(ours['encoder']['conv_out']['kernel'], mean)
    np.testing.assert_array_equal(
        ours['encoder']['conv_out']['bias'], plain['encoder.conv_out.bias'][:6]
    )
    lines = said.splitlines()
    assert any(line.endswith('took the mean, 6 of 12 channels') for line in lines)
    assert any(line.endswith('decoder.up.1.attn.0, encoder.mid.attn_1') for line in lines)
    assert any(line.endswith('skipped loss (1 tensors)') for line in lines)
    assert 'quant_conv' not in said


def test_training_starts_from_one(tmp_path, capsys):
    from_torch(tmp_path / 'vae', tokenizer=FOLDER / 'vae.safetensors', overrides=GROUPS)
    config = TokenizerRunConfig(
        task='tokenizer',
        run_dir=str(tmp_path / 'run'),
        steps=1,
        batch_size=1,
        eval_batches=1,
        optimizer=OptimizerConfig(learning_rate=1e-4),
        data=DataConfig(image_size=16),
        grids=((1, 1), (8, 8)),
        tokenizer=dataclasses.replace(CONFIG, bits=16),
        init_from=str(tmp_path / 'vae'),
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    task = make_task(config, mesh)
    state = task.from_model()
    assert 'has 4 bits, not 16: ' in capsys.readouterr().out
    started = to_host(state.params, mesh)
    assert started['encoder']['conv_out']['bias'].shape == (16,)
    vae = load_model(tmp_path / 'vae').tokenizer_params
    state, metrics = task.train_step(state, put_batch(next(task.batches), mesh))
    task.batches.close()
    assert metrics['skipped'] == 0 and np.isfinite(metrics['loss'])
    for net, layer in (('encoder', 'conv_in'), ('decoder', 'conv_out')):
        kernel = started[net][layer]['kernel']
        np.testing.assert_array_equal(kernel, vae[net][layer]['kernel'])
        assert np.abs(state.params[net][layer]['kernel'] - kernel).max() > 0


WHERE = {
    'inside encoder and decoder': lambda name: {
        'quant_conv': 'encoder.quant_conv',
        'post_quant_conv': 'decoder.post_quant_conv',
    }.get(name.split('.')[0], name.split('.')[0]) + name[len(name.split('.')[0]) :],
    'inside a diffusion model': lambda name: f'first_stage_model.{name}',
}  # fmt: skip


@pytest.mark.parametrize('where', WHERE)
def test_the_same_autoencoder_in_other_places(tmp_path, where):
    moved = {WHERE[where](name): array for name, array in stored().items()}
    assert set(moved) != set(stored())
    moved |= {'model.diffusion_model.x': noise(2), 'bn.running_mean': noise(3)}
    write_pth(tmp_path / 'x.ckpt', {'epoch': 3, 'state_dict': moved})
    config, tensors, lines = read_continuous(open_tokenizer(tmp_path / 'x.ckpt'), norm_groups=4)
    assert config == CONFIG
    _, wanted, _ = read_continuous(open_tokenizer(FOLDER / 'vae.safetensors'), norm_groups=4)
    assert set(tensors) == set(wanted)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(), wanted[name].read())
    assert lines[0] == 'skipped model (1 tensors), bn (1 tensors)'


def test_a_folded_bias_is_exact_away_from_the_border(tmp_path):
    arrays = stored() | {'post_quant_conv.bias': noise(6)}
    safetensors.numpy.save_file(arrays, tmp_path / 'x.safetensors')
    _, tensors, lines = read_continuous(open_tokenizer(tmp_path / 'x.safetensors'), norm_groups=4)
    assert 'exact but for its bias at the border' in lines[-1]

    def convolve(z_BCHW, weight, bias):
        out = jax.lax.conv(z_BCHW, weight, (1, 1), 'SAME', jax.lax.Precision.HIGHEST)
        return np.asarray(out) + bias[:, None, None]

    z = noise(1, 4, 5, 5)
    middle = convolve(z, arrays['post_quant_conv.weight'], arrays['post_quant_conv.bias'])
    wanted = convolve(middle, arrays['decoder.conv_in.weight'], arrays['decoder.conv_in.bias'])
    folded = convolve(z, *(tensors[f'decoder.conv_in.conv.{x}'].read() for x in ('weight', 'bias')))
    np.testing.assert_allclose(folded[..., 1:4, 1:4], wanted[..., 1:4, 1:4], atol=1e-5)
    assert np.abs(folded - wanted).max() > 0.01


FAULTS = {
    'missing encoder.conv_out.bias; wanted': {'encoder.conv_out.bias': None},
    'missing quant_conv.bias; wanted': {'quant_conv.bias': None},
    r'missing decoder.mid.block_1.norm1.weight \(8,\); unknown encoder.extra.weight \(3,\)': {
        'decoder.mid.block_1.norm1.weight': None,
        'encoder.extra.weight': noise(3),
    },
    r'encoder.down.0.downsample.conv.weight has shape \(4,\), wanted \(4, 4, 3, 3\)': {
        'encoder.down.0.downsample.conv.weight': noise(4)
    },
    r'quant_conv.weight has shape \(8, 9, 1, 1\), wanted \(8, 12, 1, 1\)': {
        'quant_conv.weight': noise(8, 9, 1, 1)
    },
    r'conv_in.weight has shape \(8, 6, 1, 3, 3\), wanted that of a 2-D': {
        'decoder.conv_in.weight': noise(8, 6, 1, 3, 3)
    },
    'encoder gives 7 channels and the decoder takes 4; wanted': {
        'quant_conv.weight': noise(7, 12, 1, 1),
        'quant_conv.bias': noise(7),
    },
    'names are those of diffusers': {'encoder.down_blocks.0.resnets.0.conv1.weight': noise(3)},
}


@pytest.mark.parametrize('message', FAULTS)
def test_what_is_wrong_is_one_line_in_the_names_of_the_file(tmp_path, message):
    arrays = {n: a for n, a in (stored() | FAULTS[message]).items() if a is not None}
    safetensors.numpy.save_file(arrays, tmp_path / 'x.safetensors')
    with pytest.raises(UserError, match=message) as caught:
        from_torch(tmp_path / 'm', tokenizer=tmp_path / 'x.safetensors', overrides=GROUPS)
    assert '\n' not in str(caught.value) and 'x.safetensors: ' in str(caught.value)


def test_a_transformer_wants_bits():
    pair = FOLDER.parent / 'a_2b_style'
    with pytest.raises(UserError, match='latent has no bits; give the tokenizer'):
        from_torch(
            'unused', transformer=pair / 'infinity.pth', tokenizer=FOLDER / 'vae.safetensors'
        )


def test_released_tokenizers_are_not_taken_for_one():
    released = json.loads((FOLDER.parent / 'checkpoint_keys.json').read_text())
    assert not is_continuous(open_tokenizer(FOLDER.parent / 'a_2b_style' / 'vae.pth'))
    shapes = {name: np.empty(shape) for name, shape in released['vae_d14_patch8'].items()}
    assert not is_continuous(shapes)
    twice = {'encoder.conv_out.conv.weight': np.empty((28, 512, 3, 3))}
    assert is_continuous(shapes | twice)
