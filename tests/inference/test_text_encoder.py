"""Prompts are padded to one length, exactly, and encoded where there is room."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_of
from helpers.paths import VOCABULARY
from helpers.tiny import TEXT, TRANSFORMER, lively, transformer_variables

from infinity_jax.errors import UserError
from infinity_jax.inference import text_encoder as prompt_encoder
from infinity_jax.inference.generate import generate_bits
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.inference.text_encoder import PromptEncoder, encode
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.transformer.model import Transformer
from infinity_jax.weights.placement import PlacedModel, place_text_encoder
from infinity_jax.weights.t5_folder import encoder_shapes

CONFIG = dataclasses.replace(TRANSFORMER, text_length=200)
SCHEDULE = ScaleSchedule.free(((1, 1), (2, 2)))
SHORT, LONG = 'a red apple', 'a red apple ' * 30


@functools.cache
def loaded():
    tokenizer = TextTokenizer.from_folder(VOCABULARY)
    config = dataclasses.replace(TEXT, vocab_size=tokenizer.vocab_size)
    return model_of(
        transformer_config=CONFIG,
        text_config=config,
        text_params=jax.tree.map(np.asarray, lively(encoder_shapes(config))),
        text_tokenizer=tokenizer,
    )


def placed(offload=False):
    """A model of which only the text encoder is in place."""
    model = loaded()
    params = place_text_encoder(model.text_params, model.configs, offload=offload)
    return PlacedModel(model.configs, {}, {}, params, model.text_tokenizer, offload_text=offload)


def encoded(*batches, negative=None, text_length=None):
    return list(PromptEncoder(placed(), text_length)(batches, negative))


def test_every_prompt_is_padded_to_all_that_the_model_reads():
    pairs = encoded([SHORT, SHORT], [SHORT, LONG], [SHORT, LONG * 3])
    assert [text.features_BTE.shape for text, _ in pairs] == [(2, 200, 16)] * 3
    assert [negative for _, negative in pairs] == [None] * 3


def test_a_text_length_of_its_own_pads_and_cuts_there():
    [(text, _)] = encoded([SHORT, LONG], text_length=64)
    assert text.features_BTE.shape == (2, 64, 16) and text.lengths_B[1] == 64
    [(whole, _)] = encoded([SHORT, SHORT])
    n = int(text.lengths_B[0])
    np.testing.assert_allclose(
        text.features_BTE[0, :n], whole.features_BTE[0, :n], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('length', [0, 201])
def test_a_text_length_that_the_model_does_not_have_is_a_user_error(length):
    with pytest.raises(UserError, match=f'text_length is {length}; wanted 1 to the 200 tokens'):
        encoded([SHORT], text_length=length)


def test_prompts_and_negative_share_one_length():
    [(text, negative)] = encoded([SHORT, 'a cat'], negative=LONG)
    assert text.features_BTE.shape == negative.features_BTE.shape == (2, 200, 16)
    assert negative.lengths_B[0] == negative.lengths_B[1] > text.lengths_B.max()


def test_no_prompt_compiles_anything():
    encode.clear_cache()
    encoder = PromptEncoder(placed())
    for words in (1, 3, 60, 300):
        list(encoder([['apple ' * words]], None))
    assert encode._cache_size() == 1


def test_longer_padding_changes_neither_features_nor_logits_nor_bits():
    tokenizer, variables = loaded().text_tokenizer, transformer_variables(CONFIG)
    encoder = PromptEncoder(placed())
    prompts = [SHORT, 'a ghost on a blue background']
    sampling = SamplingConfig(guidance=3.0)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    settings = sampling.static(SCHEDULE)
    generate = jax.jit(
        functools.partial(generate_bits, Transformer(CONFIG), settings=settings, keep_logits=True)
    )
    results = []
    for length in (64, 192, 200):
        ids, lengths = tokenizer(prompts, 200, length)
        text = Text(encode(encoder._encoder, loaded().text_params, ids, lengths), lengths)
        generated = generate(variables, GenerationInputs(keys, text, sampling.traced(SCHEDULE)))
        results.append(
            (generated, [f[:n] for f, n in zip(text.features_BTE, lengths, strict=True)])
        )
    for generated, features in results[1:]:
        for ours, wanted in zip(features, results[0][1], strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
        for ours, wanted in zip(generated.logits, results[0][0].logits, strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
        for ours, wanted in zip(generated.bits, results[0][0].bits, strict=True):
            np.testing.assert_array_equal(ours, wanted)


def test_offloading_encodes_all_prompts_and_leaves_the_device(monkeypatch):
    puts, live_at_encoding = [], []
    put = jax.device_put

    def watched_put(tree, *where):
        result = put(tree, *where)
        if isinstance(tree, dict):
            puts.append(result)
        return result

    def watched_encode(encoder, params, **rows):
        live_at_encoding.append(not params['token_embedding'].is_deleted())
        return encode(encoder, params, **rows)

    encoder = PromptEncoder(placed(offload=True))
    monkeypatch.setattr(prompt_encoder.jax, 'device_put', watched_put)
    monkeypatch.setattr(prompt_encoder, 'encode', watched_encode)
    pairs = encoder([[SHORT], [LONG]], 'green')
    assert live_at_encoding == [True] * 4 and len(puts) == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(puts))
    monkeypatch.undo()
    for ours, wanted in zip(pairs, encoded([SHORT], [LONG], negative='green'), strict=True):
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(ours))
        jax.tree.map(np.testing.assert_array_equal, ours, wanted)
    again = encoder([[SHORT]], None)  # the weights on the host are untouched
    np.testing.assert_array_equal(again[0][0].features_BTE, pairs[0][0].features_BTE)


def test_a_cut_prompt_is_said_and_others_are_not():
    encoder = PromptEncoder(placed())
    count = loaded().text_tokenizer.token_counts([LONG * 3])[0]
    with pytest.warns(UserWarning, match='1 of 2 prompts are cut at the 200 tokens') as caught:
        encoder.warn_of_losses([SHORT, LONG * 3])
    message = str(caught[0].message)
    assert message.endswith(f'has {count}') and "'a red apple a red" in message
    assert '\n' not in message
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        encoder.warn_of_losses([SHORT, LONG])


def test_characters_that_the_vocabulary_lacks_are_said_in_a_line():
    prompts = [SHORT, '一只红苹果', 'яблоко 🍎']
    with pytest.warns(UserWarning, match='2 of 3 prompts hold characters') as caught:
        PromptEncoder(placed()).warn_of_losses(prompts)
    message = str(caught[0].message)
    assert "lacks, 11 in all: '一只红苹果яблок🍎'" in message and '\n' not in message
    assert len(caught) == 1
