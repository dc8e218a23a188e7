"""Grids, keys, sampling settings and one small complete model for tests of generation."""

import contextlib
import dataclasses
import functools

import jax
from helpers.models import model_of
from helpers.paths import VOCABULARY
from helpers.tiny import (
    SCHEDULE,
    TEXT,
    TOKENIZER,
    TRANSFORMER,
    lively,
    text,
    tokenizer_variables,
    transformer_variables,
)

from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.tokenizer import TextTokenizer
from infinity_jax.weights.t5_folder import encoder_shapes

GRIDS = ScaleSchedule.free(((1, 1), (2, 2), (4, 3)))
GUIDANCE = (1.0, 3.0, 2.0)
TEMPERATURE = (0.5, 1.0, 0.8)


def sampling_numbers(guidance=GUIDANCE, temperature=TEMPERATURE):
    return SamplingConfig(guidance=guidance, temperature=temperature).traced(GRIDS)


def generation_inputs(prompts=None, negative=None, numbers=None, batch=3, seed=0):
    """Keys, encoded prompts (random ones by default) and sampling numbers of a batch."""
    numbers = sampling_numbers() if numbers is None else numbers
    prompts = Text(*text()) if prompts is None else prompts
    return GenerationInputs(keys(batch, seed), prompts, numbers, negative)


def keys(batch=3, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


@functools.cache
def small_model():
    tokenizer = TextTokenizer.from_folder(VOCABULARY)
    text_config = dataclasses.replace(TEXT, vocab_size=tokenizer.vocab_size)
    return model_of(
        transformer_config=TRANSFORMER,
        transformer_params=transformer_variables()['params'],
        tokenizer_config=TOKENIZER,
        tokenizer_params=tokenizer_variables()['params'],
        text_config=text_config,
        text_params=lively(encoder_shapes(text_config)),
        text_tokenizer=tokenizer,
        schedule=ScaleSchedule.free(SCHEDULE.grids[:3]),
    )


@contextlib.contextmanager
def compilations():
    """Counts the programs that are compiled or loaded in the meantime."""
    seen = []

    def listen(event, duration, **_):
        if event.endswith('backend_compile_duration'):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
