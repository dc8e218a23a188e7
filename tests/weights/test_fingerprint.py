"""Fingerprints are the same on host and devices and in bfloat16, and differ for other weights."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from helpers.models import changed, model_of
from helpers.tiny import TOKENIZER, TRANSFORMER, tokenizer_variables, transformer_variables

from infinity_jax.weights import fingerprint as module
from infinity_jax.weights.fingerprint import fingerprint, partner_fingerprint
from infinity_jax.weights.model_folder import load_model, save_model

PARAMS = jax.tree.map(np.asarray, tokenizer_variables()['params'])


def test_host_and_devices_agree():
    for shape in ((), (7,), (3, 4, 5), (3, 3, 8, 16)):
        array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        assert module._sums(array) == np.asarray(module._sums_on_mesh(jnp.asarray(array))).tolist()


def test_the_encoder_alone_in_float32_or_bfloat16():
    own = partner_fingerprint(TOKENIZER, PARAMS)
    half = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16), PARAMS)
    assert partner_fingerprint(TOKENIZER, half) == own
    decoder = jax.tree.map(lambda a: a + 1, PARAMS['decoder'])
    assert partner_fingerprint(TOKENIZER, {**PARAMS, 'decoder': decoder}) == own
    deeper = dataclasses.replace(TOKENIZER, decoder_blocks=5)
    assert partner_fingerprint(deeper, PARAMS) == own
    groups = dataclasses.replace(TOKENIZER, norm_groups=2)
    assert partner_fingerprint(groups, PARAMS) != own


def test_an_order_of_weights_matters():
    array = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    digests = {
        fingerprint({}, {'a': a}) for a in (array, array[::-1], array[:, ::-1], array + 1, -array)
    }
    assert len(digests) == 5


def test_a_folder_in_any_dtype_is_read_again(tmp_path):
    loaded = model_of(
        transformer_config=TRANSFORMER,
        transformer_params=transformer_variables()['params'],
        tokenizer_config=TOKENIZER,
        tokenizer_params=PARAMS,
        trained_with=partner_fingerprint(TOKENIZER, PARAMS),
    )
    for dtype, recorded in (('float32', True), ('bfloat16', True), ('float16', False)):
        save_model(tmp_path / dtype, loaded, dtype)
        configs = load_model(tmp_path / dtype).configs
        assert configs == (loaded.configs if recorded else changed(loaded, trained_with='').configs)
