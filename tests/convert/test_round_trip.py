"""Import and export through files, both ways."""

import dataclasses
import itertools
import json
import shutil

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import tiny
from helpers.models import model_of
from helpers.paths import GOLDEN, VOCABULARY
from helpers.sentencepiece_model import write_sentencepiece
from helpers.torch_files import assert_same_files, write_pth

from infinity_jax.cli import main
from infinity_jax.convert.exporting import to_torch_files
from infinity_jax.convert.importing import from_torch
from infinity_jax.convert.names import Naming
from infinity_jax.convert.plan import to_torch
from infinity_jax.convert.state_dict import open_tokenizer, open_transformer
from infinity_jax.errors import UserError
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.tools.commands.convert_command import grids, overrides, size
from infinity_jax.weights.model_folder import load_model, save_model
from infinity_jax.weights.t5_folder import load_encoder
from infinity_jax.weights.weight_files import open_weights

PAIRS = {
    'a_2b_style': ('infinity.pth', 'vae.pth'),
    'b_8b_style': ('infinity_sharded', 'vae.pth'),
}
CONFIG = dataclasses.replace(tiny.TRANSFORMER, depth=4, text_channels=256)


def pair(folder):
    return [GOLDEN / folder / name for name in PAIRS[folder]]


def exported(out, file_format):
    if file_format == 'pth':
        return open_transformer(out / 'transformer.pth'), open_tokenizer(out / 'tokenizer.pth')
    return open_transformer(out), open_tokenizer(out / 'tokenizer.safetensors')


@pytest.mark.parametrize(
    ('folder', 'file_format', 'shard_size'),
    [
        (folder, *how)
        for folder, how in itertools.product(
            PAIRS, [('pth', 1), ('safetensors', 10**9), ('safetensors', 300_000)]
        )
    ],
)
def test_import_then_export_gives_the_same_bytes(tmp_path, folder, file_format, shard_size):
    transformer, tokenizer = pair(folder)
    from_torch(tmp_path / 'm', transformer=transformer, tokenizer=tokenizer)
    out = tmp_path / 'out'
    files = to_torch_files(tmp_path / 'm', out, file_format=file_format, shard_size=shard_size)
    assert sorted(files) == sorted(path for path in out.rglob('*') if path.is_file())
    if shard_size == 300_000:
        assert len(list(out.glob('transformer-*'))) > 1
    ours = exported(out, file_format)
    assert_same_files(open_transformer(transformer), ours[0])
    assert_same_files(open_tokenizer(tokenizer), ours[1])
    # What was written can be read again, and is the same model.
    again = out if file_format == 'safetensors' else out / 'transformer.pth'
    ending = '.pth' if file_format == 'pth' else '.safetensors'
    from_torch(tmp_path / 'n', transformer=again, tokenizer=out / f'tokenizer{ending}')
    for name in ('transformer.safetensors', 'tokenizer.safetensors'):
        assert (tmp_path / 'n' / name).read_bytes() == (tmp_path / 'm' / name).read_bytes()


@pytest.mark.parametrize('mesh', [MeshConfig(data=1, fsdp=4, tensor=2), MeshConfig(fsdp=8, data=1)])
@pytest.mark.parametrize('folder', PAIRS)
def test_bytes_survive_sharding_over_eight_devices(tmp_path, folder, mesh):
    transformer, tokenizer = pair(folder)
    from_torch(tmp_path / 'm', transformer=transformer, tokenizer=tokenizer)
    loaded = load_model(tmp_path / 'm', dtype=None, mesh=make_mesh(mesh))
    kernel = loaded.transformer_params['blocks']['ffn']['up']['kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size / 8
    save_model(tmp_path / 'n', loaded, str(kernel.dtype))
    to_torch_files(tmp_path / 'n', tmp_path / 'out')
    assert_same_files(
        open_transformer(transformer), open_transformer(tmp_path / 'out/transformer.pth')
    )
    assert_same_files(open_tokenizer(tokenizer), open_tokenizer(tmp_path / 'out/tokenizer.pth'))


def test_text_encoder_on_a_mesh():
    config, params = load_encoder(GOLDEN / 't5_tiny')
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    _, placed = load_encoder(GOLDEN / 't5_tiny', mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    assert not placed['layers']['query']['kernel'].sharding.is_fully_replicated
    assert not placed['token_embedding'].sharding.is_fully_replicated


def write_released(folder, config=CONFIG, tokenizer=tiny.TOKENIZER, naming=Naming(2, 2)):
    """A transformer in bfloat16 with some float32, in the layout of the private kernel."""
    arrays = to_torch(config, tiny.transformer_variables(config)['params'], naming)
    arrays = {
        name: a if 'norm' in name else a.astype(ml_dtypes.bfloat16) for name, a in arrays.items()
    }
    folder.mkdir(exist_ok=True)
    write_pth(folder / 'gpt.pth', arrays)
    vae = to_torch(tokenizer, tiny.tokenizer_variables(tokenizer)['params'])
    write_pth(folder / 'vae.pth', {'vae': vae})
    return {
        'transformer': folder / 'gpt.pth',
        'tokenizer': folder / 'vae.pth',
        'token_stride': tokenizer.stride,
        'overrides': {'tokenizer.norm_groups': tokenizer.norm_groups},
    }


def test_mixed_dtypes_and_layout_are_remembered(tmp_path):
    source = write_released(tmp_path)
    configs = from_torch(tmp_path / 'm', **source)
    assert configs.tokenizer == tiny.TOKENIZER
    to_torch_files(tmp_path / 'm', tmp_path / 'out')
    assert_same_files(
        open_transformer(tmp_path / 'gpt.pth'), open_transformer(tmp_path / 'out/transformer.pth')
    )
    # Other names for the same blocks keep every tensor's dtype.
    to_torch_files(tmp_path / 'm', tmp_path / 'one', chunks=1, scale_axis=1)
    one = open_transformer(tmp_path / 'one/transformer.pth')
    assert one['blocks.3.ca_norm.weight'].dtype == np.float32
    assert one['blocks.3.ffn.fc1.weight'].dtype == ml_dtypes.bfloat16
    assert one['blocks.3.sa.scale_mul_1H11'].shape == (1, 2, 1, 1)
    to_torch_files(tmp_path / 'm', tmp_path / 'wide', dtype='float32')
    wide = open_transformer(tmp_path / 'wide/transformer.pth')
    assert {t.dtype for t in wide.values()} == {np.dtype(np.float32)}
    with pytest.raises(UserError, match='--chunks 3 does not divide the 4 blocks'):
        to_torch_files(tmp_path / 'm', tmp_path / 'x', chunks=3)


def test_a_chosen_dtype_is_stored_and_the_source_s_is_written_back(tmp_path):
    transformer, tokenizer = pair('a_2b_style')
    from_torch(tmp_path / 'm', transformer=transformer, tokenizer=tokenizer, dtype='bfloat16')
    stored = open_weights(tmp_path / 'm' / 'transformer.safetensors')
    assert {t.dtype for t in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    to_torch_files(tmp_path / 'm', tmp_path / 'out')
    before, after = (
        open_transformer(transformer),
        open_transformer(tmp_path / 'out/transformer.pth'),
    )
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}


def test_everything_wrong_in_both_files_is_one_error(tmp_path):
    source = write_released(tmp_path)
    arrays = {n: t.read() for n, t in open_transformer(source['transformer']).items()}
    del arrays['head.bias']
    arrays['surprise'] = np.zeros(3, np.float32)
    arrays['pos_start'] = np.zeros((1, 1, 7), np.float32)
    write_pth(source['transformer'], arrays)
    vae = {n: t.read() for n, t in open_tokenizer(source['tokenizer']).items()}
    del vae['encoder.conv_in.conv.bias']
    write_pth(source['tokenizer'], {'vae': vae})
    with pytest.raises(UserError) as caught:
        from_torch(tmp_path / 'm', **source)
    message = str(caught.value)
    for part in (
        'missing head.bias (8,)',
        'unknown surprise (3,)',
        'pos_start has shape (1, 1, 7), wanted (1, 1, 32)',
        'missing encoder.conv_in.conv.bias',
    ):
        assert part in message
    assert '\n' not in message and not (tmp_path / 'm').exists()


def test_parts_that_do_not_fit(tmp_path):
    source = write_released(tmp_path)
    with pytest.raises(UserError, match='stride 2 put a token on 2 pixels.*expects 16'):
        from_torch(tmp_path / 'm', **source | {'token_stride': 16})
    with pytest.raises(UserError, match='token of this transformer has 4 bits.*tokenizer 16'):
        from_torch(tmp_path / 'm', **source | {'tokenizer': pair('a_2b_style')[1]})
    with pytest.raises(UserError, match='256 channels, the text encoder gives 64'):
        from_torch(tmp_path / 'm', **source, text_encoder=text_folder(tmp_path))
    with pytest.raises(UserError, match='name --tokenizer too'):
        from_torch(tmp_path / 'm', transformer=source['transformer'])
    with pytest.raises(UserError, match='nothing to convert'):
        from_torch(tmp_path / 'm')
    with pytest.raises(UserError, match='transformer.dept; did you mean transformer.depth'):
        overrides = source['overrides'] | {'transformer.dept': 3}
        from_torch(tmp_path / 'm', **source | {'overrides': overrides})


def text_folder(tmp_path):
    """The golden encoder with a vocabulary, as a Hugging Face folder."""
    folder = tmp_path / 't5'
    shutil.copytree(GOLDEN / 't5_tiny', folder)
    shutil.copy(VOCABULARY / 'tokenizer.json', folder)
    return folder


def test_a_whole_encoder_decoder_folder_is_imported_without_its_decoder(tmp_path):
    folder = text_folder(tmp_path)
    tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
    tensors['decoder.final_layer_norm.weight'] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
    from_torch(tmp_path / 'm', text_encoder=folder)
    loaded = load_model(tmp_path / 'm')
    jax.tree.map(np.testing.assert_array_equal, loaded.text_params, load_encoder(folder)[1])
    assert loaded.text_tokenizer is not None
    stored = open_weights(tmp_path / 'm' / 'text_encoder')
    assert not any(name.startswith('decoder') for name in stored)


def test_a_repository_with_a_sentencepiece_model_is_imported(tmp_path, monkeypatch):
    folder = text_folder(tmp_path)
    (folder / 'tokenizer.json').unlink()
    model = write_sentencepiece(folder)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda name, **_: str(folder))
    from_torch(tmp_path / 'm', text_encoder='google/flan-t5-xl')
    loaded = load_model(tmp_path / 'm')
    jax.tree.map(np.testing.assert_array_equal, loaded.text_params, load_encoder(folder)[1])
    ids_BT, _ = loaded.text_tokenizer(['a red apple'], 16)
    assert ids_BT.tolist() == [[*model.encode('a red apple'), 1]]
    to_torch_files(tmp_path / 'm', tmp_path / 'exported')
    exported = {p.name for p in (tmp_path / 'exported' / 'text_encoder').iterdir()}
    assert {'spiece.model', 'tokenizer.json'} <= exported


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    transformer, tokenizer = pair('a_2b_style')
    (tmp_path / 'm').mkdir()
    (tmp_path / 'm' / 'thesis.txt').write_text('years')
    with pytest.raises(UserError, match='not a model folder'):
        from_torch(tmp_path / 'm', tokenizer=tokenizer)
    # An export adds its files.
    from_torch(tmp_path / 'n', tokenizer=tokenizer)
    to_torch_files(tmp_path / 'n', tmp_path / 'm')
    names = ['infinity_jax.json', 'thesis.txt', 'tokenizer.pth']
    assert sorted(p.name for p in (tmp_path / 'm').iterdir()) == names


def test_export_needs_something_to_export(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        to_torch_files(tmp_path / 'absent', tmp_path / 'out')
    save_model(
        tmp_path / 'm',
        model_of(
            tokenizer_config=tiny.TOKENIZER, tokenizer_params=tiny.tokenizer_variables()['params']
        ),
    )
    with pytest.raises(UserError, match='--ema is for the checkpoints'):
        to_torch_files(tmp_path / 'm', tmp_path / 'out', ema=True)
    with pytest.raises(UserError, match="format 'onnx' is unknown"):
        to_torch_files(tmp_path / 'm', tmp_path / 'out', file_format='onnx')
    assert not (tmp_path / 'out').exists()


def test_command_line(tmp_path, capsys):
    transformer, tokenizer = map(str, pair('b_8b_style'))
    main(['convert', 'from-torch', '--transformer', transformer, '--tokenizer', tokenizer,
          '--out', str(tmp_path / 'm')])  # fmt: skip
    main(['convert', 'to-torch', '--checkpoint', str(tmp_path / 'm'), '--out', str(tmp_path / 'o'),
          '--format', 'safetensors', '--shard-size', '0.3MB'])  # fmt: skip
    assert 'model.safetensors.index.json' in capsys.readouterr().out
    index = json.loads((tmp_path / 'o' / 'model.safetensors.index.json').read_text())
    assert set(index['weight_map']) == set(open_transformer(transformer))
    with pytest.raises(SystemExit):
        main(['convert', 'to-torch', '--checkpoint', 'x', '--out', 'y', '--shard-size', 'big'])
    assert "'big' is not a size" in capsys.readouterr().err


def test_sizes_and_settings():
    assert [size(text) for text in ('5GB', '1.5 mb', '12')] == [5 * 10**9, 1_500_000, 12]
    assert overrides(['a.b=3', 'a.c=[1, 2]', 'a.d=float32']) == {
        'a.b': 3,
        'a.c': [1, 2],
        'a.d': 'float32',
    }
    with pytest.raises(UserError, match='PART.FIELD=VALUE'):
        overrides(['a.b'])


def test_grids():
    assert grids('1,2, 4x3') == [(1, 1), (2, 2), (4, 3)]


FAULTS = {
    'word_embed.weight': np.zeros((32, 17), np.float32),
    'cfg_uncond': None,
    'lvl_embed.weight': None,
    'text_norm.weight': np.zeros(3, np.float32),
    'block_chunks.0.module.1.sa.scale_mul_1H11': None,
    'block_chunks.1.module.0.ffn.fc1.weight': np.zeros((3, 3), np.float32),
    'head.weight': np.zeros((2, 32), np.float32),
}


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_where_dimensions_are_read_hides_no_other(tmp_path, name):
    source = write_released(tmp_path)
    arrays = {n: t.read() for n, t in open_transformer(source['transformer']).items()}
    del arrays['head.bias']
    arrays['surprise'] = np.zeros(3, np.float32)
    arrays |= {} if FAULTS[name] is None else {name: FAULTS[name]}
    if FAULTS[name] is None:
        del arrays[name]
    write_pth(source['transformer'], arrays)
    with pytest.raises(UserError) as caught:
        from_torch(tmp_path / 'm', **source)
    message = str(caught.value)
    assert f' {name} ' in message and 'missing head.bias' in message
    assert 'unknown surprise' in message


def test_faults_of_the_tokenizer_hide_none_of_the_transformer(tmp_path):
    source = write_released(tmp_path)
    arrays = {n: t.read() for n, t in open_transformer(source['transformer']).items()}
    arrays['surprise'] = np.zeros(3, np.float32)
    write_pth(source['transformer'], arrays)
    with pytest.raises(UserError, match='norm_groups.*unknown surprise'):
        from_torch(tmp_path / 'm', **source | {'overrides': {}})


def test_a_model_on_grids_of_its_own(tmp_path):
    source = write_released(tmp_path)
    from_torch(tmp_path / 'm', **source, grids=((1, 1), (2, 3)))
    assert load_model(tmp_path / 'm').configs.schedule.grids == ((1, 1), (2, 3))


def test_a_second_export_leaves_nothing_of_the_first(tmp_path):
    transformer, tokenizer = pair('a_2b_style')
    from_torch(tmp_path / 'm', transformer=transformer, tokenizer=tokenizer)
    out = tmp_path / 'out'
    to_torch_files(tmp_path / 'm', out, file_format='safetensors', shard_size=300_000)
    (out / 'transformer-notes.txt').write_text('kept')
    to_torch_files(tmp_path / 'm', out)
    names = ['infinity_jax.json', 'tokenizer.pth', 'transformer-notes.txt', 'transformer.pth']
    assert sorted(path.name for path in out.iterdir()) == names


def test_chunks_are_counted_from_one(tmp_path, capsys):
    for chunks in ('0', '-2'):
        with pytest.raises(SystemExit):
            main(['convert', 'to-torch', '--checkpoint', 'x', '--out', 'y', '--chunks', chunks])
        assert 'not a whole number of 1 or more' in capsys.readouterr().err


def test_the_text_encoder_goes_along_in_the_dtype_asked_for(tmp_path):
    from_torch(tmp_path / 'm', text_encoder=text_folder(tmp_path))
    to_torch_files(tmp_path / 'm', tmp_path / 'same')
    to_torch_files(tmp_path / 'm', tmp_path / 'half', dtype='bfloat16')
    for folder, dtype in (('same', np.float32), ('half', ml_dtypes.bfloat16)):
        stored = open_weights(tmp_path / folder / 'text_encoder')
        assert {tensor.dtype for tensor in stored.values()} == {np.dtype(dtype)}
        assert (tmp_path / folder / 'text_encoder' / 'tokenizer.json').is_file()
