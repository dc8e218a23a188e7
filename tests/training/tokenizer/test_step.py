"""A tokenizer's step against its parts: what noise does to the outputs, and what remat must not."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from helpers.tiny import QUICK_COMPILE, lively, tokenizer_variables

from infinity_jax.config import TokenizerConfig
from infinity_jax.data.config import DataConfig
from infinity_jax.tokenizer.autoencoder import Autoencoder, to_pixels
from infinity_jax.tokenizer.quantizer import quantize, truncated_total
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.training.tokenizer.noise import QuantizerTraining
from infinity_jax.training.tokenizer.step import Noise, Outputs, forward
from infinity_jax.training.tokenizer.task import make_model

pytestmark = pytest.mark.numeric

GRIDS = ((1, 1), (2, 2), (4, 4))
KEPT_BK = np.array([[True, False, True], [False, True, True]])
SCALES_B = np.array([2, 1], np.int32)


class Patches(nn.Module):
    """The encoder of `LinearAutoencoder`: one product per patch."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, pixels_BYX3):
        u = self.config.unshuffle
        patches = rearrange(pixels_BYX3, 'b (h dy) (w dx) c -> b h w (c dy dx)', dy=u, dx=u)
        return nn.Dense(self.config.bits, name='codes')(patches)


class Pixels(nn.Module):
    """Its decoder."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, features_Bhwd):
        self.sow('intermediates', 'last_hidden', features_Bhwd)
        u = self.config.unshuffle
        return to_pixels(nn.Dense(3 * u * u, name='patches')(features_Bhwd), u)


class LinearAutoencoder(Autoencoder):
    """The methods of an `Autoencoder` that `forward` calls, quick to compile."""

    def setup(self):
        self.encoder, self.decoder = Patches(self.config), Pixels(self.config)


def run_config(**fields):
    return TokenizerRunConfig(
        task='tokenizer',
        run_dir='nowhere',
        steps=1,
        batch_size=2,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        data=DataConfig(image_size=8),
        grids=GRIDS,
        tokenizer=TokenizerConfig(
            bits=8, base_channels=4, channel_multipliers=(1,), residual_blocks=1, decoder_blocks=1,
            unshuffle=2, norm_groups=2, kernel_size=1,
        ),
        **fields,
    )  # fmt: skip


def sampled():
    rng = np.random.default_rng(0)
    flips = tuple(rng.random((2, *grid, 8)) < 0.3 for grid in GRIDS[:2])
    pixels = rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    return pixels, Noise(KEPT_BK, (*flips, None), SCALES_B)


@functools.cache
def outputs_and_gradients():
    """Of `forward` and of its parts called by hand: all outputs, and gradients of the weights."""
    attaching, detached = (
        run_config(quantizer=QuantizerTraining(attach_residual=True)),
        run_config(),
    )
    model = LinearAutoencoder(detached.tokenizer)
    pixels, noise = sampled()
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)
    params = lively(shapes['params'])

    def by_hand(params, **noisy):
        apply = functools.partial(model.apply, {'params': params})
        features = apply(pixels, method=Autoencoder.encode)
        quantized = quantize(features, GRIDS, **noisy)
        decode = functools.partial(apply, method=Autoencoder.decode)
        cut = decode(truncated_total(quantized.codes, SCALES_B))
        return Outputs(decode(quantized.total_Bhwd), cut, quantized.normalised)

    def step(params, config, noise):
        return forward(model, params, pixels, config, noise)[0]

    kept, flips = {'kept_BK': noise.kept_BK}, {'flips': noise.flips}
    ways = {
        'step': functools.partial(step, config=attaching, noise=noise),
        'detached step': functools.partial(step, config=detached, noise=noise),
        'step without noise': functools.partial(step, config=attaching, noise=None),
        'all': functools.partial(by_hand, **kept, **flips, attached=True),
        'not kept_BK': functools.partial(by_hand, **flips, attached=True),
        'not flips': functools.partial(by_hand, **kept, attached=True),
        'not attached': functools.partial(by_hand, **kept, **flips),
        'none': by_hand,
    }

    def value_and_gradient(way, params):
        def score(params):
            outputs = way(params)
            # Odd powers: gradients that vanish for neither sign.
            return sum((leaf**3).sum() for leaf in jax.tree.leaves(outputs)), outputs

        gradient, outputs = jax.grad(score, has_aux=True)(params)
        return outputs, gradient['encoder']['codes']['kernel']

    run = lambda params: {name: value_and_gradient(way, params) for name, way in ways.items()}
    return jax.jit(run, compiler_options=QUICK_COMPILE)(params)


def assert_same(ours, wanted):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_forward_hands_its_noise_to_quantizer_and_decoder():
    found = outputs_and_gradients()
    assert_same(found['step'], found['all'])
    assert_same(found['detached step'], found['not attached'])


@pytest.mark.parametrize('ignored', ['kept_BK', 'flips', 'attached'])
def test_each_kind_of_noise_matters(ignored):
    found = outputs_and_gradients()
    (_, with_it), (_, without) = found['all'], found[f'not {ignored}']
    assert np.abs(with_it - without).max() > 1e-2 * np.abs(with_it).max()


def test_forward_without_noise_is_plain():
    found = outputs_and_gradients()
    outputs, _ = found['step without noise']
    assert outputs.truncated is None
    assert_same(outputs, found['none'][0]._replace(truncated=None))


def test_a_truncated_image_is_decoded_from_its_first_scales():
    outputs = outputs_and_gradients()['step'][0]
    assert np.abs(outputs.truncated - outputs.pixels).max(axis=(1, 2, 3)).min() > 1e-2


def test_recomputed_blocks_give_the_same_gradients():
    pixels, gradients, products = sampled()[0], [], []
    for remat in ('none', 'full'):
        config = run_config(remat=remat)
        model, variables = make_model(config), tokenizer_variables(config.tokenizer)
        loss = lambda variables, m=model: jnp.square(m.apply(variables, pixels)).mean()
        traced = jax.jit(jax.grad(loss)).trace(variables)
        products.append(str(traced.jaxpr).count('conv_general_dilated['))
        gradients.append(traced.lower().compile(QUICK_COMPILE)(variables))
    assert products[1] > products[0]  # so the blocks are recomputed
    for ours, wanted in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert np.abs(wanted).max() > 1e-4
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-6)
