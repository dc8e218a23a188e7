"""Convolutions with rounded products: emulated on a CPU, the hardware's own elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import TOKENIZER, tokenizer_variables

from infinity_jax.config import CONVOLUTION_PRECISIONS, QuantizationConfig
from infinity_jax.errors import UserError
from infinity_jax.tokenizer import precision
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.tiled_decoder import RowDecoder

pytestmark = pytest.mark.numeric
LAYOUT = ('NHWC', 'HWIO', 'NHWC')
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 5, 16)).astype(np.float32)
KERNEL = RNG.standard_normal((3, 3, 16, 8)).astype(np.float32)


def convolve(name, x=X, kernel=KERNEL):
    call = lambda x, kernel: precision.convolution(
        x, kernel, (1, 1), 'SAME', dimension_numbers=LAYOUT, precision=name
    )
    return np.asarray(jax.jit(call)(x, kernel))


def exact(x, kernel):
    """The convolution in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum('bhwcij,ijcd->bhwd', windows, kernel.astype(np.float64))


def rounded(x, bits):
    """Float32 with `bits` of mantissa, half to even."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, bits + 1)), exponent - bits - 1)


@pytest.mark.parametrize('name, bits', [('float32', 23), ('tf32', 10), ('bfloat16', 7)])
def test_operands_are_rounded_and_sums_are_not(name, bits):
    x, kernel = rounded(X, bits), rounded(KERNEL, bits)
    # Processors add in different orders; operands that are not rounded are off by 300 times that.
    tolerance = 5e-7 * exact(np.abs(x), np.abs(kernel))
    assert (np.abs(convolve(name) - exact(x, kernel)) < tolerance).all()


def test_three_products_of_bfloat16_parts_come_near_float32():
    wanted = exact(X, KERNEL)
    error = {name: np.abs(convolve(name) - wanted).max() for name in CONVOLUTION_PRECISIONS}
    assert error['float32'] < error['bfloat16_3x'] < error['tf32'] / 20
    assert error['tf32'] < error['bfloat16'] / 4


def test_the_default_on_a_cpu_is_exact():
    highest = jax.lax.Precision.HIGHEST
    assert (convolve('auto') == convolve(highest)).all() and (
        convolve('float32') == convolve(highest)
    ).all()


@pytest.mark.parametrize(
    'platform, name, wanted',
    [
        ('gpu', 'auto', 'DEFAULT'),
        ('gpu', 'float32', 'HIGHEST'),
        ('tpu', 'auto', 'HIGH'),
        ('tpu', 'bfloat16', 'DEFAULT'),
    ],
)
def test_hardware_rounds_by_itself_where_it_can(platform, name, wanted, monkeypatch):
    monkeypatch.setattr(precision, 'target_platform', lambda: platform)
    traced = jax.make_jaxpr(lambda x, kernel: precision.convolution(
        x, kernel, (1, 1), 'SAME', dimension_numbers=LAYOUT, precision=name
    ))(X, KERNEL)  # fmt: skip
    (equation,) = traced.eqns
    assert equation.params['precision'] == (jax.lax.Precision[wanted],) * 2
    assert equation.invars[0].aval.dtype == jnp.float32


def test_a_gpu_multiplies_bfloat16_operands_and_adds_in_float32(monkeypatch):
    monkeypatch.setattr(precision, 'target_platform', lambda: 'gpu')
    assert convolve('bfloat16').dtype == np.float32
    assert np.abs(convolve('bfloat16') - exact(rounded(X, 7), rounded(KERNEL, 7))).max() < 1e-5


def test_a_tpu_has_no_tf32(monkeypatch):
    monkeypatch.setattr(precision, 'target_platform', lambda: 'tpu')
    with pytest.raises(UserError, match='which a TPU lacks; choose bfloat16_3x'):
        convolve('tf32')


@pytest.mark.parametrize('name', ['tf32', 'tf32_mixed'])
def test_both_decoders_round_alike(name):
    params = tokenizer_variables(TOKENIZER)['params']
    features = RNG.standard_normal((1, 4, 4, TOKENIZER.bits)).astype(np.float32)
    plain = Autoencoder(TOKENIZER, precision=name).apply(
        {'params': params}, features, method='decode'
    )
    rows = RowDecoder(TOKENIZER, jnp.float32, name, max_bytes=2**10)(params['decoder'], features)
    in_float32 = Autoencoder(TOKENIZER).apply({'params': params}, features, method='decode')
    between = np.abs(np.asarray(plain) - np.asarray(rows)).max()
    assert between < np.abs(np.asarray(plain) - np.asarray(in_float32)).max()


def test_tf32_mixed_is_closer_on_maps_as_large_as_the_code_grid(monkeypatch):
    assert precision.on_code_grid('tf32_mixed') == 'bfloat16_3x'
    assert precision.on_code_grid('tf32') == 'tf32'
    params = tokenizer_variables(TOKENIZER)
    features = RNG.standard_normal((1, 4, 4, TOKENIZER.bits)).astype(np.float32)
    decoded = lambda **options: np.asarray(
        Autoencoder(TOKENIZER, **options).apply(params, features, method='decode')
    )
    error = lambda name: np.abs(decoded(precision=name) - decoded()).mean()
    assert 0 < error('tf32_mixed') < error('tf32')
    monkeypatch.setattr(precision, 'target_kind', lambda: 'Tesla T4')
    assert precision.on_code_grid('tf32_mixed') == 'float32'


def test_auto_stands_for_the_default_of_the_platform():
    wanted = {'cpu': 'float32', 'gpu': 'tf32_mixed', 'tpu': 'bfloat16_3x'}
    assert {platform: precision.in_use('auto', platform) for platform in wanted} == wanted
    assert precision.in_use('bfloat16', 'cpu') == 'bfloat16'


def test_another_name_is_refused():
    with pytest.raises(UserError, match="decoder is 'half'; wanted auto, float32, tf32_mixed"):
        QuantizationConfig(decoder='half')
