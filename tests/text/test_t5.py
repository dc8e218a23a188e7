"""The T5 encoder against transformers' output, and its padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paths

from infinity_jax.config import TextConfig
from infinity_jax.text.t5 import T5Encoder, position_buckets
from infinity_jax.weights.t5_folder import encoder_shapes, load_encoder

pytestmark = pytest.mark.numeric

GOLDEN = paths.GOLDEN / 't5_tiny'
# transformers itself moves by up to 3.1e-6 between its attention kernels and instruction sets, and
# the stored features are 2.9e-6 from float64 arithmetic: float32 rounding of unscaled attention.
ROUNDING = 4e-6  # of float32, from arrays computed in float64


@pytest.fixture(scope='module')
def reference():
    with np.load(GOLDEN / 'arrays.npz') as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope='module')
def encoder():
    config, params = load_encoder(GOLDEN)
    return config, params, jax.jit(T5Encoder(config).apply)


def test_matches_transformers(encoder, reference):
    _, params, apply = encoder
    mask = reference['attention_mask'].astype(bool)
    ours = np.asarray(apply({'params': params}, reference['input_ids'], mask.sum(1)))
    theirs = reference['last_hidden_state']
    assert np.abs(ours - theirs)[mask].max() <= ROUNDING * np.abs(theirs[mask]).max()


def test_padding_changes_nothing(encoder, reference):
    _, params, apply = encoder
    ids, length = reference['input_ids'][1:2], int(reference['attention_mask'][1].sum())
    padded = np.full((1, 64), 7, np.int32)
    padded[:, :length] = ids[:, :length]
    lengths = np.array([length], np.int32)
    alone = apply({'params': params}, ids[:, :length], lengths)
    among = apply({'params': params}, padded, lengths)[:, :length]
    np.testing.assert_allclose(among, alone, atol=2e-5)


def test_sixteen_bit_products_stay_close(encoder, reference):
    config, params, _ = encoder
    mask = reference['attention_mask'].astype(bool)
    encode = jax.jit(T5Encoder(config, jnp.bfloat16).apply)
    ours = np.asarray(encode({'params': params}, reference['input_ids'], mask.sum(1)))
    assert ours.dtype == np.float32
    assert np.abs(ours - reference['last_hidden_state'])[mask].mean() < 0.02


def test_float16_is_closer_than_bfloat16_and_holds_large_hidden_values(encoder, reference):
    config, params, _ = encoder
    mask = reference['attention_mask'].astype(bool)
    wanted = reference['last_hidden_state']

    def rms(dtype, params):
        encode = jax.jit(T5Encoder(config, dtype).apply)
        ours = np.asarray(encode({'params': params}, reference['input_ids'], mask.sum(1)))
        return np.sqrt(np.square((ours - wanted)[mask]).mean() / np.square(wanted[mask]).mean())

    assert rms(jnp.float16, params) < 0.3 * rms(jnp.bfloat16, params)
    # The same function, with hidden values of the feed-forward beyond 65504.
    layers = {**params['layers']}
    for name, factor in (('ffn_up', 2.0**17), ('ffn_down', 2.0**-17)):
        layers[name] = {'kernel': layers[name]['kernel'] * np.float32(factor)}
    layers['ffn_up']['kernel'] *= np.float32(2.0**-6)
    layers['ffn_gate'] = {'kernel': layers['ffn_gate']['kernel'] * np.float32(2.0**6)}
    assert np.isfinite(rms(jnp.float16, {**params, 'layers': layers}))


def test_buckets_of_the_paper():
    buckets = position_buckets(300, 32, 128)
    assert buckets[5, 5] == 0
    assert buckets[5, 4] == 1 and buckets[4, 5] == 17  # behind, ahead
    assert buckets[8, 0] == 8 and buckets[0, 8] == 24  # the first logarithmic bucket
    assert buckets[299, 0] == 15 and buckets[0, 299] == 31
    assert np.all(np.diff(buckets[0, 1:]) >= 0)


def test_layers_are_stacked_and_carry_axes():
    config = TextConfig(vocab_size=11, width=8, num_layers=3, num_heads=2, head_dim=4, ffn_width=16)
    ids, lengths = jnp.zeros((1, 2), jnp.int32), jnp.ones((1,), jnp.int32)
    boxed = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), ids, lengths)
    specs = nn.get_partition_spec(boxed)['params']
    assert tuple(specs['layers']['query']['kernel']) == ('layers', 'embed', 'heads')
    assert tuple(specs['token_embedding']) == ('vocab', 'embed')
    shapes = encoder_shapes(config)
    assert shapes['layers']['ffn_gate']['kernel'].shape == (3, 8, 16)
    assert shapes['relative_bias'].shape == (32, 2)


def test_xl_size_by_shape():
    shapes = encoder_shapes(TextConfig())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_223_527_424
