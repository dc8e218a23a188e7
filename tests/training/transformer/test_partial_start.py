"""Fine-tuning with another tokenizer, text length or depth: what fits is kept, the rest is new."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.finetuning import TOKENIZER, fields, save
from helpers.models import assert_same, model_of
from helpers.stride4 import GRIDS
from helpers.tiny import lively, tokenizer_variables

from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import make_mesh
from infinity_jax.training.init_from import check_partner, run_config, transformer_params
from infinity_jax.training.transformer.parts import load_parts
from infinity_jax.training.transformer.task import make_task
from infinity_jax.transformer.model import Transformer, transformer_shapes
from infinity_jax.weights.model_folder import load_model, save_model

SCHEDULE = ScaleSchedule.free(GRIDS)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return save(tmp_path_factory.mktemp('models') / 'base', schedule=SCHEDULE)


def tokenizer_folder(folder, seed=0, **changes):
    config = dataclasses.replace(TOKENIZER, **changes)
    params = tokenizer_variables(config, seed)['params']
    save_model(
        folder, model_of(tokenizer_config=config, tokenizer_params=params, schedule=SCHEDULE)
    )
    return str(folder)


def started(base, tmp_path, **changes):
    """The run's configuration, and the weights that it starts from, by dotted path."""
    config = fields(base, tmp_path)
    for name, value in changes.items():
        target, _, field = name.rpartition('__')
        setattr(config[target] if target else config, field, value)
    config = run_config(config)
    fresh = {'transformer': lively(transformer_shapes(config.transformer), 7)}
    fresh = jax.device_put(fresh, jax.devices()[0])
    shapes = jax.eval_shape(lambda: fresh)
    mesh = make_mesh(devices=jax.devices()[:1])
    params = transformer_params(config, shapes, mesh, lambda: fresh)
    return config, flatten_dict(params['transformer'], sep='.'), flatten_dict(fresh, sep='.')


def kept(base):
    return flatten_dict(load_model(base).transformer_params, sep='.')


def differing(ours, theirs):
    """Parts of which some weight differs, or has another shape."""
    pairs = ((n.split('.')[0], np.asarray(ours[n]), np.asarray(theirs[n])) for n in ours)
    return {part for part, a, b in pairs if a.shape != b.shape or (a != b).any()}


def test_a_tokenizer_of_another_d_gives_a_new_word_embedding_and_head(base, tmp_path, capsys):
    tokenizer = tokenizer_folder(tmp_path / 'd4', bits=4)
    config, params, fresh = started(base, tmp_path, tokenizer=tokenizer)
    assert config.transformer.bits == 4
    assert differing(params, kept(base)) == {'word_embed', 'head'}
    for name in ('word_embed.kernel', 'word_embed.bias', 'head.kernel', 'head.bias'):
        np.testing.assert_array_equal(params[name], fresh['transformer.' + name])
    assert 'transformer.bits is 4, there 8: word_embed, head new' in capsys.readouterr().out


@pytest.mark.parametrize(('length', 'rows'), [(24, 16), (6, 6)])
def test_another_text_length_keeps_the_rows_of_both(base, tmp_path, capsys, length, rows):
    _, params, fresh = started(base, tmp_path, transformer__text_length=length)
    assert differing(params, kept(base)) == {'unconditional_text'}
    table, old = params['unconditional_text'], kept(base)['unconditional_text']
    assert table.shape == (length, 16)
    np.testing.assert_array_equal(table[:rows], old[:rows])
    np.testing.assert_array_equal(table[rows:], fresh['transformer.unconditional_text'][rows:])
    line = f'text_length is {length}, there 16: the first {rows} rows of unconditional_text are'
    assert line in capsys.readouterr().out


def logits(config, params, depth):
    """Of a batch of one, from parameters by dotted path."""
    config = dataclasses.replace(config, depth=depth)
    text = np.random.default_rng(0).standard_normal((1, 16, 16)).astype(np.float32)
    inputs = np.ones((1, SCHEDULE.num_tokens - 1, 8), np.float32)
    variables = {'params': unflatten_dict(params, sep='.')}
    apply = jax.jit(Transformer(config).apply, static_argnums=4)
    return apply(variables, text, np.array([5]), inputs, SCHEDULE)


@pytest.mark.numeric
def test_a_deeper_model_is_the_same_function_at_first(base, tmp_path, capsys):
    config, params, _ = started(base, tmp_path, transformer__depth=4)
    assert params['blocks.ffn.up.kernel'].shape[0] == 4
    before = logits(config.transformer, kept(base), 2)
    np.testing.assert_allclose(logits(config.transformer, params, 4), before, atol=1e-5)
    assert '4, there 2: the first 2 blocks are kept, the others start as' in capsys.readouterr().out


def test_a_shallower_model_keeps_the_first_blocks(base, tmp_path, capsys):
    _, params, _ = started(base, tmp_path, transformer__depth=1)
    assert differing(params, kept(base)) == {'blocks'}
    for name, leaf in params.items():
        if name.startswith('blocks.'):
            np.testing.assert_array_equal(leaf, kept(base)[name][:1])
    assert 'depth is 1, there 2: the first 1 blocks are kept' in capsys.readouterr().out


def test_more_scales_keep_their_rows(base, tmp_path):
    _, params, _ = started(base, tmp_path, transformer__max_scales=5)
    np.testing.assert_array_equal(params['level_embed'][:3], kept(base)['level_embed'])


def test_a_model_of_the_same_dimensions_is_kept_whole(base, tmp_path, capsys):
    _, params, _ = started(base, tmp_path)
    assert_same(params, kept(base))
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'change', [{'width': 64}, {'num_heads': 4}, {'mlp_ratio': 16.0}], ids=lambda c: next(iter(c))
)
def test_what_is_in_every_matrix_cannot_differ(base, tmp_path, change):
    ((name, value),) = change.items()
    config = fields(base, tmp_path)
    config.transformer[name] = value
    config = run_config(config)
    shapes = {'transformer': transformer_shapes(config.transformer)}
    mesh = make_mesh(devices=jax.devices()[:1])
    with pytest.raises(UserError, match="model's own transformer.width, transformer.num_heads"):
        transformer_params(config, shapes, mesh, None)


def test_another_tokenizer_of_the_same_d_is_refused_unless_its_parts_are_new(base, tmp_path):
    given = fields(base, tmp_path)
    given.tokenizer = tokenizer_folder(tmp_path / 'other', seed=1)
    config = run_config(given)
    with pytest.raises(UserError, match='same number of bits, with another meaning') as caught:
        make_task(config, make_mesh(devices=jax.devices()[:1]))
    assert "config.new_parts to ('word_embed', 'head')" in str(caught.value)
    _, params, _ = started(
        base, tmp_path, tokenizer=given.tokenizer, new_parts=('word_embed', 'head')
    )
    assert differing(params, kept(base)) == {'word_embed', 'head'}
    given.new_parts = ('word_embed', 'head')
    config = run_config(given)
    check_partner(config, load_parts(config).configs.trained_with)


def test_the_right_tokenizer_passes_from_another_folder_and_with_another_decoder(base, tmp_path):
    given = fields(base, tmp_path)
    given.tokenizer = tokenizer_folder(tmp_path / 'same')
    config = run_config(given)
    check_partner(config, load_parts(config).configs.trained_with)
    deeper = dataclasses.replace(TOKENIZER, decoder_blocks=4)
    params = {**tokenizer_variables(deeper, 3)['params']}
    params['encoder'] = tokenizer_variables(TOKENIZER)['params']['encoder']
    save_model(
        tmp_path / 'deeper',
        model_of(tokenizer_config=deeper, tokenizer_params=params, schedule=SCHEDULE),
    )
    given.tokenizer = str(tmp_path / 'deeper')
    config = run_config(given)
    check_partner(config, load_parts(config).configs.trained_with)


def test_a_name_that_is_no_part_is_a_user_error(base, tmp_path):
    given = fields(base, tmp_path)
    given.new_parts = ('hed',)
    with pytest.raises(UserError, match="new_parts names 'hed'; wanted some of word_embed, head"):
        run_config(given)


def test_a_run_starts_and_records_its_tokenizer(base, tmp_path, capsys):
    given = fields(base, tmp_path)
    given.tokenizer = tokenizer_folder(tmp_path / 'd4', bits=4)
    config = run_config(given)
    task = make_task(config, make_mesh(devices=jax.devices()[:1]))
    state = task.from_model()
    assert state.params['transformer']['head']['bias'].shape == (8,)
    assert 'word_embed, head new' in capsys.readouterr().out
    task.export(state, tmp_path / 'model')
    loaded = load_model(tmp_path / 'model')
    assert loaded.configs.trained_with == load_parts(config).configs.trained_with != ''
    # A tokenizer of the same d from elsewhere in that folder does not pass.
    tokenizer_folder(tmp_path / 'other', seed=1, bits=4)
    wrong = tmp_path / 'other' / 'tokenizer.safetensors'
    (tmp_path / 'model' / 'tokenizer.safetensors').write_bytes(wrong.read_bytes())
    with pytest.raises(UserError, match='these two do not belong together'):
        load_model(tmp_path / 'model')
    assert load_model(tmp_path / 'model', verify=False).tokenizer_params
