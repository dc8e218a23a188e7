"""Compiler options of a TPU reach its programs, and no others."""

import functools

import jax
import jax.numpy as jnp
import pytest
from helpers.tiny import TOKENIZER, tokenizer_variables

from infinity_jax import sharding
from infinity_jax.inference import generate
from infinity_jax.runtime.platform import PlatformJit
from infinity_jax.sharding import generation_compiler_options
from infinity_jax.tokenizer.autoencoder import Autoencoder


@functools.partial(
    PlatformJit, compiler_options=generation_compiler_options, static_argnames='times'
)
def scaled(x, times):
    """x, so often."""
    return x * times


def refused_on_tpu(monkeypatch, call):
    """Whether the compiler, which here is a CPU's, refuses what a program for TPU asks of it."""
    call()
    monkeypatch.setattr(sharding, 'target_kind', lambda: 'TPU v5 lite')
    with pytest.raises(jax.errors.JaxRuntimeError, match='xla_tpu_scoped_vmem_limit_kib'):
        call()


def test_it_is_the_function():
    x = jnp.arange(3)
    before = scaled.compiled()
    assert (scaled(x, times=2) == x * 2).all() and (scaled(x + 1, times=2) == x * 2 + 2).all()
    assert scaled.compiled() == before + 1
    assert scaled.__name__ == 'scaled' and scaled.__doc__ == 'x, so often.'


def test_options_reach_calls_for_tpu_alone(monkeypatch):
    refused_on_tpu(monkeypatch, lambda: scaled(jnp.ones(5), times=3))


def test_options_reach_lowered_programs_for_tpu_alone(monkeypatch):
    refused_on_tpu(monkeypatch, lambda: scaled.lower(jnp.ones(5), times=3).compile())


def test_generation_has_such_options(monkeypatch):
    codes = jnp.zeros((1, 2, 2, TOKENIZER.bits))
    arguments = Autoencoder(TOKENIZER), tokenizer_variables(TOKENIZER), codes
    refused_on_tpu(monkeypatch, lambda: generate.decode(*arguments))
