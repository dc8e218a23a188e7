import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import TOKENIZER, tokenizer_variables

from infinity_jax.config import TokenizerConfig
from infinity_jax.tokenizer.autoencoder import Autoencoder, GroupNorm, conv, tokenizer_shapes
from infinity_jax.tokenizer.upsample import UpsampleConv, by_phase, plain

pytestmark = pytest.mark.numeric


def group_norm(x, groups):
    """The plain definition, in float64, before scale and bias."""
    b, h, w, c = x.shape
    grouped = x.astype(np.float64).reshape(b, h * w, groups, c // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)


@pytest.mark.parametrize(('channels', 'groups', 'used'), [(64, 32, 32), (48, 32, 24), (12, 4, 4)])
def test_group_norm_equals_the_plain_definition(channels, groups, used):
    rng = np.random.default_rng(0)
    x = (3 + 2 * rng.standard_normal((2, 5, 4, channels))).astype(np.float32)
    scale, bias = rng.standard_normal((2, channels)).astype(np.float32)
    ours = GroupNorm(groups).apply({'params': {'scale': scale, 'bias': bias}}, x)
    np.testing.assert_allclose(ours, group_norm(x, used) * scale + bias, atol=5e-6)


def test_group_norm_computes_in_float32_and_returns_the_dtype_it_was_given():
    x = (100 + np.random.default_rng(0).standard_normal((1, 8, 8, 8))).astype(jnp.bfloat16)
    params = {'scale': np.ones(8, np.float32), 'bias': np.zeros(8, np.float32)}
    ours = GroupNorm(4).apply({'params': params}, jnp.asarray(x))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(np.float32), group_norm(x, 4), atol=0.02)


def test_group_norm_passes_no_gradient_to_a_flat_group_and_the_exact_one_to_others():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 4, 8)).astype(np.float32)
    x[..., 2:] = 7.0 + np.array([0, 0, 2e-6, -2e-6, 2e-5, -2e-5], np.float32)
    x[1] = 0
    g = rng.standard_normal(x.shape).astype(np.float32)
    scale = rng.standard_normal(8).astype(np.float32)

    def score(x, scale, bias):
        return (g * GroupNorm(4).apply({'params': {'scale': scale, 'bias': bias}}, x)).sum()

    dx, dscale, dbias = jax.jit(jax.grad(score, (0, 1, 2)))(x, scale, jnp.zeros(8))
    dx = np.asarray(dx)
    assert not dx[0, ..., 2:6].any() and not dx[1].any()
    np.testing.assert_allclose(dbias, g.sum((0, 1, 2)), rtol=1e-4, atol=1e-5)
    y = group_norm(x, 4)
    np.testing.assert_allclose(dscale, (g * y).sum((0, 1, 2)), atol=0.05)
    for group in (slice(0, 2), slice(6, 8)):  # standard deviations of 1 and 2e-5
        values, normal = x[0, ..., group].astype(np.float64), y[0, ..., group]
        to_y = (g * scale)[0, ..., group]
        across = to_y - to_y.mean() - normal * (to_y * normal).mean()
        wanted = across / np.sqrt(values.var() + 1e-6)
        assert np.abs(dx[0, ..., group] - wanted).max() < 0.02 * np.abs(wanted).max()
        if values.std() > 0.1:
            np.testing.assert_allclose(dx[0, ..., group], wanted, atol=1e-5)


def test_an_empty_total_decodes_with_bounded_gradients():
    """Codes of consecutive scales can cancel; the norms in series would give 1e18 and more."""
    variables = Autoencoder(TOKENIZER).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    variables = nn.unbox(variables)

    def score(params, total):
        decoded = Autoencoder(TOKENIZER).apply({'params': params}, total, method=Autoencoder.decode)
        return jnp.square(decoded - 1).mean()

    total = jnp.zeros((1, 4, 4, TOKENIZER.bits))
    gradients = jax.jit(jax.grad(score, (0, 1)))(variables['params'], total)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) < 100
    assert np.abs(gradients[0]['decoder']['conv_out']['bias']).max() > 1e-3  # the mean is learned


def test_stride_two_pads_zeros_on_the_right_and_bottom_only():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 4, 3)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 3, 2)).astype(np.float32)
    params = {'kernel': kernel, 'bias': np.zeros(2, np.float32)}
    ours = conv(2, 3, stride=2, precision='highest').apply({'params': params}, x)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    assert ours.shape == (1, 3, 2, 2)
    for i in range(3):
        for j in range(2):
            patch = padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            wanted = np.einsum('yxc,yxco->o', patch, kernel)
            np.testing.assert_allclose(ours[0, i, j], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ('multipliers', 'unshuffle', 'stride'), [((1, 2), 1, 2), ((1, 1, 2), 2, 8), ((2,), 4, 4)]
)
def test_shapes_of_features_and_pixels(multipliers, unshuffle, stride):
    config = TokenizerConfig(5, 8, multipliers, 1, unshuffle, norm_groups=4)
    assert config.stride == stride
    model = Autoencoder(config)
    pixels = jnp.zeros((2, 3 * stride, 2 * stride, 3))
    variables = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels))

    def run(method, x):
        return jax.eval_shape(lambda v, x: model.apply(v, x, method=method), variables, x)

    features = run('encode', pixels)
    assert features.shape == (2, 3, 2, 5) and features.dtype == jnp.float32
    decoded = run('decode', features)
    assert decoded.shape == pixels.shape and decoded.dtype == jnp.float32


@pytest.mark.parametrize(
    ('config', 'count'),
    [
        (TokenizerConfig(bits=32), 110_118_051),
        (TokenizerConfig(bits=14, channel_multipliers=(1, 2, 4, 4)), 81_624_209),
    ],
)
def test_released_sizes_have_the_released_parameter_counts(config, count):
    shapes = tokenizer_shapes(config)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    assert set(shapes['encoder']['down_0']) == {'block_0', 'block_1', 'downsample'}
    coarsest = len(config.channel_multipliers) - 1
    assert set(shapes['encoder'][f'down_{coarsest}']) == {'block_0', 'block_1'}
    blocks = {'block_0', 'block_1', 'block_2'}
    assert set(shapes['decoder'][f'up_{coarsest}']) == blocks | {'upsample'}
    assert set(shapes['decoder']['up_0']) == blocks
    assert 'shortcut' in shapes['encoder']['down_1']['block_0']
    assert 'shortcut' not in shapes['encoder']['down_1']['block_1']


def test_images_of_a_batch_do_not_mix_and_any_size_is_taken():
    model, variables = Autoencoder(TOKENIZER), tokenizer_variables()
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    encode = jax.jit(lambda x: model.apply(variables, x, method='encode'))
    both = encode(pixels)
    assert both.shape == (2, 4, 6, 4)
    np.testing.assert_allclose(encode(pixels[1:]), both[1:], atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_decoder_does_not_clamp():
    model, variables = Autoencoder(TOKENIZER), tokenizer_variables()
    features = 10 * np.random.default_rng(0).standard_normal((1, 4, 4, 4)).astype(np.float32)
    pixels = jax.jit(lambda x: model.apply(variables, x, method='decode'))(features)
    assert np.abs(pixels).max() > 1


def test_unshuffle_moves_pixels_into_channels():
    config = TokenizerConfig(4, 8, (1,), 1, unshuffle=4, norm_groups=4)
    shapes = tokenizer_shapes(config)
    assert shapes['encoder']['conv_in']['kernel'].shape == (3, 3, 48, 8)
    assert shapes['decoder']['conv_out']['kernel'].shape == (3, 3, 8, 48)


def test_pointwise_convolutions_see_their_own_patch():
    config = TokenizerConfig(4, 8, (1,), 1, unshuffle=4, norm_groups=4, kernel_size=1)
    model, variables = Autoencoder(config), tokenizer_variables(config)
    features = np.random.default_rng(0).standard_normal((1, 3, 3, 4)).astype(np.float32)

    def corner(x):
        return model.apply(variables, x, method='decode')[0, :4, :4].sum()

    def no_norm(method, args, kwargs, context):  # its statistics are of the whole image
        return args[0] if isinstance(context.module, GroupNorm) else method(*args, **kwargs)

    with nn.intercept_methods(no_norm):
        gradient = jax.grad(corner)(features)
    assert np.abs(gradient[0, 0, 0]).min() > 0
    assert not np.abs(gradient).sum(-1).ravel()[1:].any()


def test_upsampling_by_phases_is_the_plain_form_and_so_are_its_gradients():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 4, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 6)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((2, 10, 8, 6)), jnp.float32)

    def value_and_gradients(form):
        run = lambda x, kernel: form(x, kernel, 'highest')
        loss = lambda *args: (run(*args) * weights).sum()
        return jax.jit(run)(x, kernel), *jax.jit(jax.grad(loss, (0, 1)))(x, kernel)

    for ours, wanted in zip(value_and_gradients(by_phase), value_and_gradients(plain), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_a_cpu_upsamples_by_phases():
    shape = jax.ShapeDtypeStruct((1, 4, 4, 8), jnp.float32)
    layer = UpsampleConv(8, nn.initializers.ones, jnp.float32, None)
    params = jax.eval_shape(layer.init, jax.random.key(0), shape)
    assert set(params['params']) == {'kernel', 'bias'}
    program = jax.jit(layer.apply).lower(params, shape).as_text()
    assert program.count('stablehlo.convolution') == 4


def test_blocks_are_computed_again_where_that_is_wanted():
    pixels = jnp.zeros((1, 8, 8, 3))

    def convolutions(remat):
        model = Autoencoder(TOKENIZER, remat=remat)
        loss = lambda variables: jnp.square(model.apply(variables, pixels)).sum()
        program = str(jax.make_jaxpr(jax.grad(loss))(tokenizer_variables()))
        return program.count('conv_general_dilated[')

    # The first of each of 10 blocks; no gradient reads what the second one gives.
    assert convolutions('full') - convolutions('none') == 10
