"""A training step's memory savers: they change what is kept and when, not what comes out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import model_of
from helpers.tiny import (
    QUICK_COMPILE,
    SCHEDULE,
    TEXT,
    TOKENIZER,
    TRANSFORMER,
    lively,
    tokenizer_variables,
    transformer_variables,
)
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AbstractDevice, AbstractMesh

from infinity_jax.data.batch import Batch
from infinity_jax.data.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import TPU_OPTIONS, MeshConfig, in_mesh, make_mesh
from infinity_jax.text.t5 import T5Encoder
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.training.accumulate import batch_parts, check_parts, mean_of_parts
from infinity_jax.training.batches import put_batch
from infinity_jax.training.optimizer import OptimizerConfig, make_optimizer, new_state
from infinity_jax.training.transformer.config import (
    SelfCorrection,
    T2IConfig,
    TextTraining,
    run_schedule,
)
from infinity_jax.training.transformer.parts import place_frozen
from infinity_jax.training.transformer.step import Models, evaluation_step, jit_step, train_step
from infinity_jax.transformer import attention_choice
from infinity_jax.transformer.model import Transformer
from infinity_jax.transformer.remat import CUDNN_ATTENTION, POLICIES
from infinity_jax.weights.t5_folder import encoder_shapes, load_encoder, save_encoder

ENCODER = dataclasses.replace(TEXT, vocab_size=40)
DROPPING = dataclasses.replace(TRANSFORMER, drop_path=0.2)
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def run_config(**fields):
    return T2IConfig(
        task='t2i',
        run_dir='',
        steps=4,
        batch_size=8,
        data=DataConfig(image_size=8),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        transformer=DROPPING,
        text=TextTraining(encoder=ENCODER, train=True),
        self_correction=SelfCorrection(group=1),
        condition_drop=0.5,
        **fields,
    )


def batches():
    rng = np.random.default_rng(0)
    for _ in range(4):
        yield Batch(
            pixels_BYX3=rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
            ids_BT=rng.integers(0, 40, (8, 8), np.int32),
            lengths_B=rng.integers(1, 9, 8, np.int32),
        )


def start(config):
    """The step, and all that it starts from."""
    models, frozen = parts_of(config)
    params = {'transformer': transformer_variables(DROPPING)['params']}
    state = new_state(params, make_optimizer(config.optimizer, config.steps))
    step = functools.partial(train_step, models=models, config=config)
    return jax.jit(step, compiler_options=QUICK_COMPILE), state, frozen


def parts_of(config):
    """The networks, and the frozen parameters."""
    models = Models(
        Transformer(DROPPING, remat=config.remat, layers=config.layers),
        Autoencoder(TOKENIZER),
        T5Encoder(ENCODER),
        (SCHEDULE,),
    )
    frozen = {
        'tokenizer': tokenizer_variables()['params'],
        'text': lively(encoder_shapes(ENCODER)),
    }
    return models, frozen


@functools.cache
def metrics(remat='none', accumulate_steps=1, layers='scanned'):
    """Loss, gradient norm and the rates by scale of four steps."""
    config = run_config(remat=remat, accumulate_steps=accumulate_steps, layers=layers)
    step, state, frozen = start(config)
    found = []
    for batch in batches():
        state, values = step(state, frozen, batch)
        found.append({name: np.asarray(values[name]) for name in values})
    return found


@pytest.mark.parametrize(
    ('remat', 'parts', 'layers'), [('full', 4, 'unrolled'), ('queries', 2, 'scanned')]
)
def test_recomputing_accumulating_and_unrolling_change_nothing(remat, parts, layers):
    plain = metrics()
    assert plain[3]['loss'] != plain[0]['loss']
    for ours, wanted in zip(metrics(remat, parts, layers), plain, strict=True):
        np.testing.assert_allclose(ours['loss'], wanted['loss'], rtol=0, atol=1e-6)
        for name in ('grad_norm', 'accuracy_per_scale', 'majority_rate_per_scale'):
            np.testing.assert_allclose(ours[name], wanted[name], rtol=1e-5)


def test_a_mean_of_parts_is_the_mean_of_all():
    rows = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    means = lambda rows: {'mean': rows.mean(), 'by_column': jnp.square(rows).mean(0)}
    for name, value in mean_of_parts(means, rows, 4).items():
        np.testing.assert_allclose(value, means(rows)[name], rtol=1e-6)


def test_evaluation_works_on_no_more_images_at_once_than_training():
    config = run_config(accumulate_steps=4)
    models, frozen = parts_of(config)
    params = {'transformer': transformer_variables(DROPPING)['params']}
    evaluate = functools.partial(evaluation_step, models=models, config=config)
    program = str(jax.make_jaxpr(evaluate)(params, frozen, next(batches()), 0))
    assert 'f32[2,8,8,8]' in program and 'f32[8,8,8,8]' not in program  # channels at 8 x 8 pixels


def test_parts_on_a_mesh_stay_where_their_rows_are():
    mesh = make_mesh(MESH)
    step, state, frozen = start(run_config(accumulate_steps=2))
    spread = put_batch(next(batches()), mesh)
    compiled = in_mesh(mesh, step.lower)(state, frozen, spread).compile()
    assert 'all-to-all' not in compiled.as_text()
    loss = compiled(state, frozen, spread)[1]['loss']
    np.testing.assert_allclose(loss, metrics()[0]['loss'], rtol=1e-5)
    rows = in_mesh(mesh, jax.jit(lambda batch: batch_parts(batch, 2)))(spread).lengths_B
    assert rows.shape == (2, 4) and rows.sharding.shard_shape(rows.shape) == (2, 1)
    np.testing.assert_array_equal(rows.T.reshape(-1), spread.lengths_B)


def test_a_batch_that_does_not_divide_into_parts_is_refused():
    mesh = make_mesh(MESH)
    check_parts(8, 2, mesh)
    for count in (0, 3, 4):
        with pytest.raises(UserError, match=f'accumulate_steps is {count}: batch_size 8'):
            check_parts(8, count, mesh)


@functools.cache
def operations(remat, implementation='xla', config=TRANSFORMER):
    """Numbers of matrix products and of kernel calls for a value and its gradient."""
    schedule = ScaleSchedule.free(((1, 1), (12, 12)))
    model = Transformer(config, implementation, remat)
    features, lengths = jnp.zeros((1, 8, 16)), jnp.ones(1, jnp.int32)
    inputs = jnp.zeros((1, schedule.num_tokens - 1, 4))

    def loss(variables):
        return model.apply(variables, features, lengths, inputs, schedule).sum()

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(transformer_variables()))
    kernels = jaxpr.count('pallas_call[') + jaxpr.count(f'{CUDNN_ATTENTION}[')
    return jaxpr.count('dot_general['), kernels


def test_policies_recompute_what_they_say():
    products = [operations(name)[0] for name in POLICIES]
    assert list(POLICIES) == ['none', 'dots', 'queries', 'attention', 'full']
    assert products == sorted(set(products))
    # The self- and cross-attention kernels: values and gradients each, values to text twice.
    kernels = [operations(name, 'splash')[1] for name in POLICIES]
    assert kernels == [4, 5, 5, 5, 6]


def test_the_gradient_of_cudnn_attention_runs_it_once(monkeypatch):
    monkeypatch.setattr(attention_choice, 'target_platform', lambda: 'gpu')
    monkeypatch.setattr(attention_choice, 'SMALL_BLOCK', 1)
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 91_100)
    config = dataclasses.replace(TRANSFORMER, dtype='bfloat16')
    assert [operations(name, 'cudnn', config)[1] for name in POLICIES] == [3, 3, 3, 3, 6]


def test_a_step_is_compiled_with_the_options_of_its_platform(monkeypatch):
    device = AbstractDevice(device_kind='some', num_cores=1, platform='tpu')
    tpu = AbstractMesh((1,), ('data',), abstract_device=device)
    given = []
    monkeypatch.setattr(jax, 'jit', lambda _, **options: given.append(options['compiler_options']))
    for mesh in (tpu, make_mesh()):
        jit_step(models=None, config=None, shardings=None, mesh=mesh)
    assert given == [TPU_OPTIONS, None]


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="remat is 'some'; wanted one of none, dots"):
        run_config(remat='some')
    with pytest.raises(UserError, match="attention is 'some'; wanted auto, xla"):
        run_config(attention='some')
    with pytest.raises(UserError, match="layers is 'some'; wanted one of auto, scanned"):
        run_config(layers='some')
    with pytest.raises(UserError, match="encode_once is 'some'; wanted 'auto' or 'never'"):
        run_config(encode_once='some')


def test_the_frozen_text_encoder_is_split_and_has_the_dtype_of_products(tmp_path):
    folder, mesh = tmp_path / 'text', make_mesh(MESH)
    save_encoder(folder, ENCODER, lively(encoder_shapes(ENCODER)))
    config = dataclasses.replace(
        run_config(),
        text=TextTraining(folder=str(folder)),
        transformer=dataclasses.replace(TRANSFORMER, dtype='bfloat16'),
    )
    text, text_params = load_encoder(folder, None, mesh)
    loaded = model_of(
        tokenizer_config=TOKENIZER,
        tokenizer_params=tokenizer_variables()['params'],
        text_config=text,
        text_params=text_params,
        transformer_config=config.transformer,
    )
    frozen = place_frozen(config, loaded, mesh)
    kernel = frozen['text']['layers']['query']['kernel']
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding.shard_shape(kernel.shape) == (1, 8, 8)
    assert frozen['text']['token_embedding'].dtype == jnp.float32
    convolution = frozen['tokenizer']['encoder']['mid_1']['conv1']['kernel']
    assert convolution.dtype == jnp.float32 and not convolution.sharding.is_fully_replicated


def test_a_run_can_have_grids_of_its_own():
    grids = ((1, 1), (3, 3), (4, 4))
    assert run_schedule(run_config(grids=grids), SCHEDULE, False).grids == grids
    with pytest.raises(UserError, match=r'grids ends in \(5, 5\); the tokenizer makes'):
        run_schedule(run_config(grids=((1, 1), (5, 5))), SCHEDULE, False)
