"""Stored programs are used where they fit and only there."""

import json

import jax
import jax.numpy as jnp
import pytest
from helpers.generation import small_model
from helpers.models import changed

from infinity_jax.errors import UserError
from infinity_jax.inference import executables as executables_module
from infinity_jax.inference.executables import FOLDER, Executables
from infinity_jax.inference.generate import generate_images
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.warmup import GenerationRequest, calls_for
from infinity_jax.runtime.compile_cache import user_cache_folder
from infinity_jax.scales import ScaleSchedule
from infinity_jax.weights.model_folder import save_model
from infinity_jax.weights.placement import place_model

TRACED = []


@jax.jit
def double(x_BD, y):
    TRACED.append(x_BD.shape)
    return {'sum': x_BD * 2 + y[None]}


def shapes(batch=3):
    return {'x_BD': jax.ShapeDtypeStruct((batch, 4), jnp.float32), 'y': jnp.zeros(4)}


def arrays(batch=3):
    return {'x_BD': jnp.ones((batch, 4)), 'y': jnp.arange(4.0)}


WANTED = [2.0, 3.0, 4.0, 5.0]


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def stored(tmp_path):
    """A model folder with one stored program; nothing of it is left in memory."""
    path = Executables(tmp_path).store(double, {}, shapes())
    jax.clear_caches()
    TRACED.clear()
    return path


def called(folder, batch=3):
    return Executables(folder).call(double, {}, arrays(batch))['sum'][0].tolist()


def test_a_stored_program_is_called_without_tracing(stored, tmp_path, capsys):
    assert stored.parent == tmp_path / FOLDER and stored.suffix == '.program'
    assert called(tmp_path) == WANTED and not TRACED
    assert capsys.readouterr().err == ''
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]  # nothing half written


def test_other_shapes_are_compiled_and_one_line_says_why(stored, tmp_path, capsys):
    assert called(tmp_path, batch=5) == WANTED and TRACED == [(5, 4)]
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert 'x_BD is float32[3, 4] there, float32[5, 4] here' in said


def test_other_surroundings_are_compiled_and_one_line_says_why(
    stored, tmp_path, capsys, monkeypatch
):
    elsewhere = executables_module.surroundings() | {'jax': '0.9.9'}
    monkeypatch.setattr(executables_module, 'surroundings', lambda: elsewhere)
    assert called(tmp_path) == WANTED and TRACED
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and f'jax is {jax.__version__} there, 0.9.9 here' in said


@pytest.mark.parametrize('damage', ['header', 'payload', 'cut', 'someone else'])
def test_what_this_user_did_not_write_is_not_run(stored, tmp_path, capsys, damage):
    content = stored.read_bytes()
    header, payload = content.split(b'\n', 1)
    fields = json.loads(header)
    if damage == 'header':
        fields['computes']['x_BD'] = 'changed'
    if damage == 'payload':
        payload = payload[:-50] + bytes(byte ^ 1 for byte in payload[-50:])
    stored.write_bytes(json.dumps(fields).encode() + b'\n' + payload)
    if damage == 'cut':
        stored.write_bytes(content[:100])
    if damage == 'someone else':
        (user_cache_folder() / 'program_secret').write_bytes(b'another')
    assert called(tmp_path) == WANTED and TRACED
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and f'{stored} is not used' in said


def test_the_secret_is_the_users_alone(stored):
    secret = user_cache_folder() / 'program_secret'
    assert secret.stat().st_mode & 0o777 == 0o600 and len(secret.read_bytes()) == 32


def test_a_prepared_program_is_not_traced_again(tmp_path):
    executables = Executables()
    TRACED.clear()
    executables.prepare(double, {}, shapes(7))
    executables.call(double, {}, arrays(7))
    executables.call(double, {}, arrays(7))
    assert TRACED == [(7, 4)]


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / FOLDER).write_text('in the way')
    with pytest.raises(UserError, match='could not be written'):
        Executables(tmp_path).store(double, {}, shapes())


@pytest.mark.parametrize(
    'change', [{'top_k': 1}, {'guidance': 1.0}, {'guidance_layer': -1}, {'unguided_scales': 1}]
)
def test_every_static_setting_has_a_program_of_its_own(change):
    def names(sampling):
        request = GenerationRequest(('a cat',), sampling=sampling)
        calls = calls_for(request, small_model().configs, 1)
        return [executables_module._key(executables_module.describe_call(*call)) for call in calls]

    usual, other = names(SamplingConfig()), names(SamplingConfig(**change))
    assert usual[0] == other[0] and usual[1] != other[1]
    assert usual == names(SamplingConfig(temperature=0.1, guidance=4.0))


def test_settings_and_inputs_are_described_field_by_field():
    request = GenerationRequest(('a cat',), negative='green')
    described = executables_module.describe_call(*calls_for(request, small_model().configs, 1)[1])
    assert described['settings.top_p'] == '0.97' and 'settings.schedule.grids' in described
    assert (
        described['inputs.text.lengths_B'] == 'int32[1]' == described['inputs.negative.lengths_B']
    )
    assert described['networks.transformer'].startswith('Transformer(')


def test_a_model_generates_by_its_stored_programs(tmp_path, monkeypatch):
    small = changed(small_model(), schedule=ScaleSchedule.free(((1, 1), (2, 1))))
    save_model(tmp_path / 'model', small)
    request = GenerationRequest(('a ghost', 'a cat'), negative='green')
    for call in calls_for(request, small.configs, 2):
        Executables(tmp_path / 'model').store(*call)
    jax.clear_caches()
    monkeypatch.setattr(jax.stages.Lowered, 'compile', None)  # nothing is compiled ahead
    pipeline = InfinityPipeline.from_pretrained(tmp_path / 'model', max_batch=2, request=request)
    generated = pipeline(list(request.prompts), negative='green', seed=3)
    assert generate_images.compiled() == 0  # nor by jit
    monkeypatch.undo()
    plain = InfinityPipeline(place_model(small), max_batch=2)
    assert (generated.pixels == plain(list(request.prompts), negative='green', seed=3).pixels).all()
    assert len(generated.batch_seconds) == 1 and generated.batch_seconds[0] > 0
