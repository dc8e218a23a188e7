"""Programs are stored ahead of time, also where cuDNN attention fails."""

import jax
import pytest
from helpers.generation import small_model
from helpers.models import changed

from infinity_jax.cli import main
from infinity_jax.inference.executables import Executables
from infinity_jax.inference.generate import generate_images
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.scales import ScaleSchedule
from infinity_jax.weights.model_folder import save_model

FAULT = 'INTERNAL: cuDNN: No valid engine configs for this card'


def test_after_a_fault_of_cudnn_the_program_has_xlas_attention(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    folder = tmp_path / 'model'
    save_model(folder, changed(small_model(), schedule=ScaleSchedule.free(((1, 1), (2, 1)))))
    store = Executables.store

    def faulty(self, function, static, shapes):
        if 'networks' in static and static['networks'].transformer.implementation == 'auto':
            raise jax.errors.JaxRuntimeError(FAULT)
        return store(self, function, static, shapes)

    monkeypatch.setattr(Executables, 'store', faulty)
    main(['compile', '--checkpoint', str(folder)])
    said = capsys.readouterr()
    assert said.err.count('\n') == 1
    assert (
        said.err.startswith("attention: XLA's from here on, since cuDNN failed")
        and FAULT in said.err
    )
    assert said.out.count('.program: ') == 2
    jax.clear_caches()
    # What `generate` falls back to after the same fault.
    InfinityPipeline.from_pretrained(folder, attention='xla')('a ghost')
    assert generate_images.compiled() == 0


def test_another_error_is_raised(tmp_path, monkeypatch):
    folder = tmp_path / 'model'
    save_model(folder, small_model())

    def full(self, function, static, shapes):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

    monkeypatch.setattr(Executables, 'store', full)
    with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED'):
        main(['compile', '--checkpoint', str(folder)])
