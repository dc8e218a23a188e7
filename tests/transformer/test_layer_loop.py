"""Which training programs list their layers, and that the program does."""

import jax
import jax.numpy as jnp
import pytest
from helpers.tiny import SCHEDULE, TRANSFORMER, transformer_variables
from jax.sharding import AbstractDevice, AbstractMesh

from infinity_jax.transformer.layer_loop import MAX_UNROLLED, unrolled
from infinity_jax.transformer.model import Transformer


@pytest.mark.parametrize(
    ('platform', 'depth', 'wanted'),
    [('cpu', MAX_UNROLLED, True), ('cpu', MAX_UNROLLED + 1, False), ('tpu', 2, False)],
)
def test_auto_lists_the_layers_of_small_models_on_a_cpu(platform, depth, wanted):
    device = AbstractDevice(device_kind='some', num_cores=1, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ('data',), abstract_device=device)):
        assert unrolled('auto', depth) == wanted
        assert unrolled('unrolled', depth) and not unrolled('scanned', depth)


def test_a_listed_program_has_no_loop():
    def program(layers):
        model = Transformer(TRANSFORMER, layers=layers)
        inputs = jnp.zeros((1, SCHEDULE.num_tokens - 1, TRANSFORMER.token_bits))
        text = jnp.zeros((1, 8, TRANSFORMER.text_channels))
        apply = lambda v: model.apply(v, text, jnp.ones(1, jnp.int32), inputs, SCHEDULE)
        return jax.jit(apply).lower(transformer_variables()).as_text()

    assert 'while' in program('scanned') and 'while' not in program('auto')
