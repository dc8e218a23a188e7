"""`infinity-jax check` passes on the golden folders and fails when a stage is broken."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from helpers.models import changed
from helpers.paths import GOLDEN

from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import quantizer, resize
from infinity_jax.tools.parity import stages as check_stages
from infinity_jax.tools.parity.check import check_folder, judge
from infinity_jax.tools.parity.reference import Row, load_reference
from infinity_jax.training.transformer import self_correction
from infinity_jax.transformer import model as transformer_model

pytestmark = pytest.mark.numeric

A, B = GOLDEN / 'a_2b_style', GOLDEN / 'b_8b_style'


@pytest.fixture(scope='module')
def references():
    return {folder: load_reference(folder) for folder in (A, B)}


def verdicts(rows):
    """stage -> verdict, in full float32."""
    with jax.default_matmul_precision('highest'):
        return {row.stage: judge(row) for row in rows}


@pytest.mark.parametrize('folder', [A, B], ids=lambda f: f.name)
def test_passes(folder, capsys):
    assert check_folder(folder) == 0
    printed = capsys.readouterr().out
    assert printed.endswith('passed\n') and 'FAILED' not in printed
    assert 'skipped: no var_input' in printed  # the cut-down folders name the missing arrays
    for stage in ('encoder features', 'logits', 'generation: bits', 'generation: image'):
        assert any(line.startswith(stage) and ' ok' in line for line in printed.splitlines())
    if folder == A:
        assert '0 of 16672' in printed and 'negative prompt: image' in printed
    else:
        assert 'no negative_case' in printed


def test_bfloat16_is_near(references):
    """Generation with the blocks in bfloat16; docs/speed.md has its errors on other weights."""
    loaded = references[A].loaded
    config = dataclasses.replace(loaded.configs.transformer, dtype='bfloat16')
    half = dataclasses.replace(references[A], loaded=changed(loaded, transformer_config=config))
    rows = list(check_stages.generation_rows(half, 'generation', 'gen', half.meta, None))
    assert 1e-3 < rows[0].error < 0.04
    (bits,) = (row for row in rows if row.bits)
    assert bits.wrong_bits < 0.01 * bits.bits


def test_fails_when_the_resize_antialiases(references, monkeypatch):
    def antialiased(source, target):
        with jax.ensure_compile_time_eval():
            x = jnp.eye(source)[None, :, :, None]
            shape = (1, target, source, 1)
            return np.asarray(jax.image.resize(x, shape, 'linear', antialias=True))[0, :, :, 0]

    # Only shrinking differs: growing must agree, or the test would prove nothing of antialias.
    np.testing.assert_allclose(antialiased(4, 16), resize.bilinear_matrix(4, 16), atol=1e-6)
    monkeypatch.setattr(resize, 'bilinear_matrix', antialiased)
    found = verdicts(check_stages.self_correction_rows(references[A]))
    assert found['self-correction inputs'] == 'FAILED'
    assert found['self-correction targets'] == 'ok'


def test_fails_when_area_becomes_bilinear(references, monkeypatch):
    monkeypatch.setattr(resize, 'area_matrix', resize.bilinear_matrix)
    found = verdicts(check_stages.self_correction_rows(references[A]))
    assert found['self-correction targets'] == 'FAILED'


@pytest.mark.parametrize('folder', [A, B], ids=lambda f: f.name)
def test_fails_when_the_bit_order_is_reversed(references, monkeypatch, folder):
    flatten = self_correction.flatten_tokens
    monkeypatch.setattr(
        self_correction, 'flatten_tokens', lambda x, patchify: flatten(x[..., ::-1], patchify)
    )
    found = verdicts(check_stages.self_correction_rows(references[folder]))
    assert set(found.values()) == {'FAILED'}


def test_fails_when_the_logits_of_zero_and_one_are_swapped(references, monkeypatch):
    logits = transformer_model.Transformer.logits
    monkeypatch.setattr(
        transformer_model.Transformer, 'logits', lambda *args: logits(*args)[..., ::-1]
    )
    found = verdicts(check_stages.forward_rows(references[A]))
    assert found['logits'] == 'FAILED' and found['last block'] == 'ok'


def test_fails_when_rope_refers_to_its_own_last_grid(references, monkeypatch):
    positions = ScaleSchedule.rope_positions
    monkeypatch.setattr(
        ScaleSchedule,
        'rope_positions',
        lambda schedule: positions(ScaleSchedule.free(schedule.grids[:7])),
    )
    found = verdicts(check_stages.forward_rows(references[A]))
    for stage in ('rotary positions', 'first block', 'last block', 'logits'):
        assert found[stage] == 'FAILED'
    assert found['text pooled'] == 'ok'


def test_fails_when_patchify_orders_channels_otherwise(references, monkeypatch):
    def space_to_depth(x):
        return rearrange(x, 'b (h dy) (w dx) c -> b h w (dy dx c)', dy=2, dx=2)

    monkeypatch.setattr(quantizer, 'space_to_depth', space_to_depth)
    found = verdicts(check_stages.self_correction_rows(references[B]))
    assert set(found.values()) == {'FAILED'}


def test_judges_by_the_stated_limits():
    assert judge(Row('x', 1.9e-5)) == 'ok'
    assert judge(Row('x', 2.1e-5)) == 'FAILED'
    assert judge(Row('x', float('nan'))) == 'FAILED'
    assert judge(Row('x', wrong_bits=1, bits=9, margin=9e-6)) == 'ok'
    assert judge(Row('x', wrong_bits=1, bits=9, margin=1.1e-5)) == 'FAILED'
    assert judge(Row('x', grey_levels=1)) == 'ok'
    assert judge(Row('x', grey_levels=2)) == 'FAILED'
    assert judge(Row('x', 3e-5, exact=(2e-6, 1.9e-5))) == 'ok'
    assert judge(Row('x', 3e-5, exact=(2e-6, 2.1e-5))) == 'FAILED'
    assert judge(Row('x', skipped='no array')) == 'skipped'


def test_weights_of_other_dimensions_are_refused(tmp_path):
    shutil.copytree(A, tmp_path / 'a')
    meta = (A / 'meta.json').read_text().replace('"depth": 4', '"depth": 5')
    (tmp_path / 'a' / 'meta.json').write_text(meta)
    with pytest.raises(UserError, match='depth is 4, meta.json says 5'):
        check_folder(tmp_path / 'a')


def test_folders_that_cannot_be_checked(tmp_path):
    with pytest.raises(UserError, match='no arrays.npz'):
        check_folder(tmp_path)
    (tmp_path / 'arrays.npz').write_bytes(b'PK')
    with pytest.raises(UserError, match='neither meta.json'):
        check_folder(tmp_path)
    shutil.copy(A / 'meta.json', tmp_path)
    with pytest.raises(UserError, match=r'has nothing for infinity\*'):
        check_folder(tmp_path)


def test_t5_folder(capsys):
    check_folder(GOLDEN / 't5_tiny')
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith('T5 features') and float(line.split()[2]) < 5e-6


def test_a_folder_without_a_needed_array_or_with_a_broken_file_is_one_error(tmp_path):
    folder = tmp_path / 't5'
    shutil.copytree(GOLDEN / 't5_tiny', folder)
    np.savez(folder / 'arrays.npz', input_ids=np.zeros((1, 2), int))
    with pytest.raises(UserError, match='arrays.npz lacks attention_mask'):
        check_folder(folder)
    (folder / 'arrays.npz').write_bytes(b'PK\x03\x04 cut off')
    with pytest.raises(UserError, match='arrays.npz: not readable'):
        check_folder(folder)
