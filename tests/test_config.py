import dataclasses
import itertools

import pytest
from ml_collections import ConfigDict

from infinity_jax.config import PRESETS, TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.parsing import from_mapping


@dataclasses.dataclass(frozen=True)
class Run:
    tokenizer: TokenizerConfig
    rate: float = 1.0
    steps: int = 10
    resume: bool = False
    name: str | None = None
    scales: tuple[tuple[int, int], ...] = ()


def test_lists_become_tuples_and_the_result_is_hashable():
    fields = ConfigDict({'tokenizer': {'channel_multipliers': [1, 2]}, 'scales': [[1, 1], [2, 3]]})
    run = from_mapping(Run, fields)
    assert run.tokenizer.channel_multipliers == (1, 2)
    assert run.scales == ((1, 1), (2, 3))
    assert hash(run) == hash(from_mapping(Run, fields))


def test_whole_numbers_are_floats_where_floats_are_wanted():
    rate = from_mapping(Run, {'tokenizer': {}, 'rate': 2}).rate
    assert rate == 2.0 and isinstance(rate, float)


def test_optional_fields_take_none_or_the_type():
    assert from_mapping(Run, {'tokenizer': {}, 'name': None}).name is None
    assert from_mapping(Run, {'tokenizer': {}, 'name': 'a'}).name == 'a'
    with pytest.raises(UserError, match='name'):
        from_mapping(Run, {'tokenizer': {}, 'name': 3})


def test_unknown_field_suggests_the_nearest():
    with pytest.raises(UserError, match=r'unknown config field widht; did you mean width\?'):
        from_mapping(TransformerConfig, {'depth': 2, 'widht': 32, 'num_heads': 2})


def test_unknown_field_is_named_by_its_whole_path():
    wanted = r'model\.tokenizer\.base_chanels; did you mean model\.tokenizer\.base_channels\?'
    with pytest.raises(UserError, match=wanted):
        from_mapping(Run, {'tokenizer': {'base_chanels': 8}}, 'model')


def test_unknown_field_unlike_any_lists_the_known():
    with pytest.raises(UserError, match='zzz; known: bits, base_channels'):
        from_mapping(TokenizerConfig, {'zzz': 1})


def test_missing_fields_are_named_together():
    with pytest.raises(UserError, match=r'model\.depth, model\.num_heads'):
        from_mapping(TransformerConfig, {'width': 32}, 'model')


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('steps', 1.5, 'steps is 1.5 of type float; wanted int'),
        ('steps', True, 'steps is True of type bool; wanted int'),
        ('steps', '7', "steps is '7' of type str; wanted int"),
        ('rate', 'fast', 'wanted float'),
        ('rate', True, 'wanted float'),
        ('resume', 1, 'wanted bool'),
        ('scales', '1,1 2,2', 'wanted a list'),
        ('scales', [3, 4], 'wanted a list'),
        ('scales', [[1, 1.5]], 'wanted int'),
        ('scales', {(1, 1): 2}, 'wanted a list'),
        ('scales', {(1, 1), (2, 2)}, 'wanted a list'),
        ('scales', itertools.repeat((1, 1)), r'is repeat\(\(1, 1\)\); wanted a list'),
    ],
)
def test_wrong_type_says_field_value_and_wanted_type(name, value, message):
    with pytest.raises(UserError, match=message):
        from_mapping(Run, {'tokenizer': {}, name: value})


@pytest.mark.parametrize(('width', 'heads'), [(32, 3), (36, 6)])
def test_heads_that_rope_cannot_turn_are_refused(width, heads):
    with pytest.raises(UserError, match=f'width {width} over {heads} heads'):
        TransformerConfig(depth=1, width=width, num_heads=heads)


def test_derived_sizes_of_the_released_models():
    assert PRESETS['2.2b'].hidden_width == 8192  # 4 · 2080 / 256 = 32.5 rounds half to even
    assert PRESETS['2b'].hidden_width == 8192
    assert PRESETS['2b'].head_dim == PRESETS['8b'].head_dim == 128
    assert PRESETS['8b'].token_bits == 56 and PRESETS['2b'].token_bits == 32
    assert PRESETS['2b'].pool_heads == 16 and PRESETS['20b'].pool_heads == 32
    assert TokenizerConfig().stride == 16
    assert TokenizerConfig(channel_multipliers=(1, 2, 4), unshuffle=2).stride == 8


@pytest.mark.parametrize(
    'make, name',
    [
        (lambda: TransformerConfig(depth=1, width=32, num_heads=0), 'num_heads'),
        (lambda: TransformerConfig(depth=1, width=32, num_heads=2, dtype='float33'), 'dtype'),
        (lambda: TransformerConfig(depth=1, width=40, num_heads=2, text_channels=384), 'width'),
        (
            lambda: TransformerConfig(depth=0, width=32, num_heads=2),
            'transformer.depth is 0; wanted',
        ),
        (lambda: TransformerConfig(1, 32, 2, bits=0), 'transformer.bits is 0; wanted'),
        (
            lambda: TransformerConfig(1, 32, 2, classifier='codes'),
            "transformer.classifier is 'codes'; wanted bits, index",
        ),
        (
            lambda: TransformerConfig(1, 32, 2, bits=17, classifier='index'),
            r"classifier is 'index' with 17 bits per token, a softmax over 2\^17 numbers",
        ),
        (
            lambda: TransformerConfig(1, 32, 2, bits=5, spatial_patchify=True, classifier='index'),
            "classifier is 'index' with 20 bits per token",
        ),
        (lambda: TransformerConfig(1, 32, 2, drop_path=1.0), 'drop_path is 1.0; wanted'),
        (lambda: TokenizerConfig(channel_multipliers=()), 'channel_multipliers'),
        (lambda: TokenizerConfig(base_channels=20), 'norm_groups'),
        (lambda: TokenizerConfig(kernel_size=2), 'kernel_size'),
        (lambda: TokenizerConfig(kernel_size=1), 'channel_multipliers'),
        (lambda: TokenizerConfig(bits=0), 'tokenizer.bits is 0; wanted a whole number from 1'),
        (lambda: TokenizerConfig(bits=-1), 'tokenizer.bits is -1; wanted'),
        (lambda: TokenizerConfig(base_channels=0), 'tokenizer.base_channels is 0; wanted'),
        (lambda: TokenizerConfig(residual_blocks=0), 'tokenizer.residual_blocks is 0; wanted'),
        (lambda: TokenizerConfig(decoder_blocks=-1), 'tokenizer.decoder_blocks is -1; wanted'),
        (lambda: TokenizerConfig(unshuffle=0), 'tokenizer.unshuffle is 0; wanted'),
        (lambda: TokenizerConfig(norm_groups=0), 'tokenizer.norm_groups is 0; wanted'),
        (lambda: TokenizerConfig(channel_multipliers=(1, 0)), r'multipliers is \(1, 0\); wanted'),
    ],
)
def test_impossible_sizes_are_refused(make, name):
    with pytest.raises(UserError, match=name):
        make()
