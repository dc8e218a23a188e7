"""Attention by compute capability, and after a fault of cuDNN's."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import small_model
from helpers.models import changed
from helpers.tiny import TRANSFORMER
from jax.sharding import AbstractDevice, AbstractMesh

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.runtime.accelerators import capability_of
from infinity_jax.training.transformer.step import Models, WithFallback
from infinity_jax.transformer import attention_choice
from infinity_jax.transformer.attention_choice import after_fault, choose
from infinity_jax.transformer.model import Transformer
from infinity_jax.weights.placement import place_model

QUERIES = jax.ShapeDtypeStruct((1, 200, 2, 128), jnp.bfloat16)
# As in jax issues 23227, 23833 and 20438.
FAULTS = (
    'INTERNAL: No valid engine configs for Matmul_MUL_Reduction_SUB_EXP_Reduction_LOG_ADD_DIV_'
    "Matmul_\nin external/xla/xla/stream_executor/cuda/cuda_dnn.cc(8382): 'graph_.create_"
    "execution_plans({cudnn_frontend::HeurMode_t::A})'",
    'UNKNOWN: CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED',
    'cuDNN is not detected.',
)


@pytest.fixture(autouse=True)
def nothing_said():
    attention_choice._say.cache_clear()


def on_card(kind, function, *args):
    """`function` as it is traced for one GPU of a kind."""
    device = AbstractDevice(device_kind=kind, num_cores=1, platform='gpu')
    axes = ('data', 'fsdp', 'tensor', 'sequence')
    mesh = AbstractMesh((1, 1, 1, 1), axes, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return function(*args)


def test_cards_before_ampere_use_xla_and_one_line_says_so(capsys):
    assert on_card('NVIDIA A100-SXM4-40GB', choose, 'auto', QUERIES) == 'cudnn'
    assert on_card('an unknown one', choose, 'auto', QUERIES) == 'cudnn'
    assert capsys.readouterr().err == ''
    for _ in range(2):
        assert on_card('Tesla T4', choose, 'auto', QUERIES) == 'xla'
    assert capsys.readouterr().err == (
        "attention: XLA's, since Tesla T4 has compute capability 7.5 and cuDNN attention needs "
        '8.0 (Ampere) or newer\n'
    )
    with pytest.raises(UserError, match="'cudnn', but Tesla T4 has compute capability 7.5"):
        on_card('Tesla T4', choose, 'cudnn', QUERIES)


def test_a_card_here_names_its_capability_itself():
    device = types.SimpleNamespace(device_kind='NVIDIA GeForce GTX 1080', compute_capability='6.1')
    other = types.SimpleNamespace(device_kind='AMD Instinct', compute_capability='gfx90a')
    assert capability_of('NVIDIA GeForce GTX 1080', [device]) == (6, 1)
    assert capability_of('NVIDIA H200', [device]) == (9, 0)  # of the table
    assert capability_of('AMD Instinct', [other]) is None
    assert capability_of('cpu', jax.devices()) is None


@pytest.mark.parametrize('text', FAULTS)
def test_a_fault_of_cudnn_leads_to_xla_and_one_line(text, capsys):
    error = jax.errors.JaxRuntimeError(text)
    assert [after_fault('auto', error) for _ in range(2)] == ['xla', 'xla']
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"attention: XLA's from here on, since cuDNN failed ({text[:20]}")
    with pytest.raises(UserError, match="attention is 'cudnn', and cuDNN failed .* set attention"):
        after_fault('cudnn', error)


@pytest.mark.parametrize(
    ('implementation', 'text'),
    [
        ('xla', FAULTS[0]),  # it would fail again
        ('auto', 'INTERNAL: another error'),
        ('auto', 'RESOURCE_EXHAUSTED: Out of memory; cudnn workspace'),
    ],
)
def test_other_errors_are_raised(implementation, text):
    with pytest.raises(jax.errors.JaxRuntimeError, match=text[:20]):
        after_fault(implementation, jax.errors.JaxRuntimeError(text))


@pytest.fixture
def broken_cudnn(monkeypatch):
    """Programs are traced as for a GPU whose cuDNN attention fails; returns the calls of it."""
    attend, failed = jax.nn.dot_product_attention, []

    def fail(*args, implementation, **options):
        if implementation == 'cudnn':
            failed.append(args)
            raise jax.errors.JaxRuntimeError(FAULTS[0])
        return attend(*args, implementation=implementation, **options)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', fail)
    monkeypatch.setattr(attention_choice, 'target_platform', lambda: 'gpu')
    monkeypatch.setattr(attention_choice, 'SMALL_BLOCK', 1)
    return failed


def bfloat16_model(attention='auto'):
    config = dataclasses.replace(TRANSFORMER, dtype='bfloat16')
    model = changed(small_model(), transformer_config=config)
    configs = dataclasses.replace(model.configs, attention=attention)
    return place_model(dataclasses.replace(model, configs=configs))


def test_generation_falls_back_once(broken_cudnn, capsys):
    wanted = InfinityPipeline(bfloat16_model('xla'))(['a cat']).pixels
    assert not broken_cudnn
    pipeline = InfinityPipeline(bfloat16_model())
    for _ in range(2):
        np.testing.assert_array_equal(pipeline(['a cat']).pixels, wanted)
    assert len(broken_cudnn) == 1
    assert capsys.readouterr().err.count("XLA's from here on") == 1
    with pytest.raises(UserError, match="attention is 'cudnn', and cuDNN failed"):
        InfinityPipeline(bfloat16_model('cudnn'))(['a cat'])


def test_a_training_step_falls_back_once(capsys):
    calls = []

    def jit(models):
        def step(x):
            calls.append(models.transformer.implementation)
            if calls[-1] == 'auto':
                raise jax.errors.JaxRuntimeError(FAULTS[0])
            return x + 1

        return step

    step = WithFallback(jit, Models(Transformer(TRANSFORMER), None, None, ()))
    assert [step(1), step(2)] == [2, 3]
    assert calls == ['auto', 'xla', 'xla']
    assert capsys.readouterr().err.count("XLA's from here on") == 1


def test_attention_that_does_not_run_is_refused_before_weights_are_read(capsys, monkeypatch):
    monkeypatch.setattr('infinity_jax.inference.loading.load_model', None)
    with pytest.raises(SystemExit):
        main(['generate', 'a cat', '--attention', 'cudnn'])
    error = capsys.readouterr().err
    assert "attention is 'cudnn', which is for NVIDIA GPUs, and the platform is 'cpu': set" in error


@pytest.mark.parametrize(
    ('dtype', 'head_dim', 'message'),
    [
        ('float32', 128, 'wants bfloat16 or float16, and the products in blocks are in float32: '),
        ('bfloat16', 36, 'wants heads of a multiple of 8 up to 128, and the model has heads of 36'),
        ('bfloat16', 256, 'wants heads .* and the model has heads of 256'),
    ],
)
def test_the_cause_why_cudnn_does_not_run(dtype, head_dim, message):
    queries = jax.ShapeDtypeStruct((1, 200, 2, head_dim), jnp.dtype(dtype))
    with pytest.raises(UserError, match=f"attention is 'cudnn', which {message}"):
        on_card('NVIDIA H200', choose, 'cudnn', queries)
    with pytest.raises(UserError, match="the platform is 'cpu': set attention to 'auto' or 'xla'$"):
        choose('cudnn', queries)
