"""Names of TPU slices."""

import importlib.util

import pytest

from infinity_jax.errors import UserError
from infinity_jax.tools.plan.topology import Topology, parse_topology


def test_a_name_is_read():
    topology = parse_topology('v5p:4x4x8')
    assert topology == Topology('v5p', (4, 4, 8))
    assert topology.num_chips == 128 and topology.name == 'v5p:4x4x8'


@pytest.mark.parametrize(
    'name, message',
    [
        ('v5e', 'wanted CHIP:SHAPE'), ('v5e:', 'wanted CHIP:SHAPE'),
        ('v9:2x2', 'known: v5e, v5p, v6e, a100-40'), ('v5e:4x4x4', 'v5e slices have 2 axes'),
        ('v5p:4x4', 'v5p slices have 3 axes'), ('v5e:0x4', '1 or more'),
    ],
)  # fmt: skip
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_topology(name)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('chip', ['v5e', 'v5p', 'v6e'])
def test_clocks_are_plausible(chip):
    axes = 'x'.join(['1'] * (3 if chip == 'v5p' else 2))
    assert 1e9 < parse_topology(f'{chip}:{axes}').clock < 2e9


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='libtpu compiles')
@pytest.mark.parametrize('name, chips', [('v5e:1x1', 1), ('v5e:4x4', 16), ('v5p:1x1x1', 1)])
def test_libtpu_knows_the_slice(name, chips):
    from infinity_jax.tools.plan.topology import devices_of, prepare

    prepare()
    assert len(devices_of(parse_topology(name))) == chips
