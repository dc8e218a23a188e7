"""A tokenizer by the name of a model folder, a run folder or one checkpoint of a run."""

import pathlib
import shutil

import numpy as np
import pytest
from helpers.models import model_of
from helpers.stride4 import GRIDS, PARAMS, TOKENIZER
from helpers.tiny import tokenizer_variables

from infinity_jax.data.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.evaluation.tokenizer_checkpoint import open_checkpoint
from infinity_jax.training.checkpoint import Checkpoints
from infinity_jax.training.optimizer import OptimizerConfig
from infinity_jax.training.run_folder import write_description
from infinity_jax.training.tokenizer.config import TokenizerRunConfig
from infinity_jax.weights.model_folder import save_model

OTHERS = tokenizer_variables(TOKENIZER, seed=1)['params']


def bias_of(params):
    return np.asarray(params['encoder']['conv_out']['bias'])


def test_a_run_gives_the_averaged_weights_of_a_checkpoint(tmp_path):
    config = TokenizerRunConfig(
        task='tokenizer',
        run_dir=str(tmp_path),
        steps=7,
        batch_size=1,
        data=DataConfig(image_size=16, subset='demo'),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        tokenizer=TOKENIZER,
        grids=GRIDS,
    )
    write_description(config, tmp_path)
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, average in ((3, OTHERS), (7, PARAMS)):
        checkpoints.save(step, {'params': OTHERS, 'ema': average})
    checkpoints.wait()
    checkpoints.close()
    for name, average, results in (
        ('.', PARAMS, 'evaluation'),
        ('checkpoints/3', OTHERS, 'evaluation_3'),
    ):
        found = open_checkpoint(tmp_path / name)
        assert (bias_of(found.loaded.tokenizer_params) == bias_of(average)).all()
        assert found.loaded.configs.tokenizer == TOKENIZER and not found.folded
        assert found.loaded.configs.schedule.grids == GRIDS and found.results == tmp_path / results
        assert found.loaded.configs.extra['run']['data']['subset'] == 'demo'
    (tmp_path / 'config.json').write_text('{"task": "t2i"}')
    with pytest.raises(UserError, match=r"a run of task 't2i'; wanted .*/model$"):
        open_checkpoint(tmp_path)


def test_a_model_folder_and_where_its_results_go(tmp_path):
    loaded = model_of(
        tokenizer_config=TOKENIZER, tokenizer_params=PARAMS, schedule=ScaleSchedule.free(GRIDS)
    )
    save_model(tmp_path / 'run' / 'model', loaded)
    (tmp_path / 'run' / 'config.json').write_text('{"task": "tokenizer"}')
    for name in ('run', 'run/model'):
        found = open_checkpoint(tmp_path / name)
        assert (bias_of(found.loaded.tokenizer_params) == bias_of(PARAMS)).all()
        assert found.results == tmp_path / 'run' / 'evaluation'
    shutil.copytree(tmp_path / 'run' / 'model', tmp_path / 'd4')
    assert open_checkpoint(tmp_path / 'd4').results == tmp_path / 'd4_evaluation'
    assert open_checkpoint(DEMO_FOLDER).results == pathlib.Path('evaluation')
    for name, message in (('', "--checkpoint is ''"), (tmp_path / 'none', 'no such folder')):
        with pytest.raises(UserError, match=message):
            open_checkpoint(name)
