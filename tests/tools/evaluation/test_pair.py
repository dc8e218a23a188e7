"""The shipped pair belongs together; with another tokenizer of the same d it does not."""

import dataclasses

import numpy as np
import pytest
from helpers.models import changed

from infinity_jax.cli import main
from infinity_jax.convert.exporting import to_torch_files
from infinity_jax.convert.importing import from_torch
from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.tools.evaluation.pair import CHANCE, check_pair, pair_loss
from infinity_jax.weights.model_folder import load_model, save_model

pytestmark = pytest.mark.numeric


def other_order_of_bits(params):
    """A tokenizer that encodes and decodes just as well, with its bits in another order."""
    order = np.random.default_rng(0).permutation(32)
    encoder, decoder = {**params['encoder']}, {**params['decoder']}
    out = encoder['conv_out']
    encoder['conv_out'] = {'kernel': out['kernel'][..., order], 'bias': out['bias'][order]}
    kernel = decoder['conv_in']['kernel'][:, :, order]
    decoder['conv_in'] = {**decoder['conv_in'], 'kernel': kernel}
    return {'encoder': encoder, 'decoder': decoder}


@pytest.fixture(scope='module')
def demo():
    return load_model(DEMO_FOLDER, parts=('transformer', 'tokenizer'))


def test_the_right_tokenizer_is_below_chance(capsys):
    check_pair(DEMO_FOLDER)
    assert capsys.readouterr().out.endswith('transformer and tokenizer belong together\n')
    result = pair_loss(DEMO_FOLDER, 2)
    assert result.loss < CHANCE - 0.2 and len(result.per_scale) == 4


def test_released_style_files_of_a_wrong_pair_are_caught_by_numbers(demo, tmp_path, capsys):
    """Torch files say nothing of their partner; `convert --check-pair` computes it."""
    config = dataclasses.replace(demo.configs, text=None, trained_with='')
    demo = dataclasses.replace(demo, configs=config)
    save_model(tmp_path / 'right', demo)
    wrong = other_order_of_bits(demo.tokenizer_params)
    save_model(tmp_path / 'wrong', changed(demo, tokenizer_params=wrong))
    for name in ('right', 'wrong'):
        to_torch_files(tmp_path / name, tmp_path / f'{name}_torch')
    arguments = ['convert', 'from-torch', '--out', str(tmp_path / 'm'), '--check-pair']
    arguments += ['--transformer', str(tmp_path / 'right_torch/transformer.pth')]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, '--tokenizer', str(tmp_path / 'wrong_torch/tokenizer.pth')])
    assert caught.value.code == 2
    assert 'these two do not belong together' in capsys.readouterr().err
    main([*arguments, '--tokenizer', str(tmp_path / 'right_torch/tokenizer.pth')])
    assert 'belong together' in capsys.readouterr().out


def test_files_of_our_export_are_told_apart_without_computing(demo, tmp_path):
    save_model(tmp_path / 'right', dataclasses.replace(
        demo, configs=dataclasses.replace(demo.configs, text=None)))  # fmt: skip
    to_torch_files(tmp_path / 'right', tmp_path / 'torch')
    wrong = other_order_of_bits(demo.tokenizer_params)
    config = dataclasses.replace(demo.configs, text=None, transformer=None, trained_with='')
    save_model(tmp_path / 'wrong', dataclasses.replace(
        demo, configs=config, transformer_params=None, tokenizer_params=wrong))  # fmt: skip
    to_torch_files(tmp_path / 'wrong', tmp_path / 'other')
    with pytest.raises(UserError, match='these two do not belong together; give the tokenizer'):
        from_torch(
            tmp_path / 'm',
            transformer=tmp_path / 'torch/transformer.pth',
            tokenizer=tmp_path / 'other/tokenizer.pth',
        )
    assert not (tmp_path / 'm').exists()
