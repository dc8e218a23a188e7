import dataclasses
import functools
import re

import huggingface_hub
import huggingface_hub.constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import compilations, small_model
from helpers.models import changed
from helpers.tiny import (
    SCHEDULE,
    TOKENIZER,
    TRANSFORMER,
    tokenizer_variables,
    transformer_variables,
)

from infinity_jax.errors import UserError
from infinity_jax.inference import generator as generator_module
from infinity_jax.inference import loading, memory_plan
from infinity_jax.inference.job import GenerationJob
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.inference.warmup import GenerationRequest
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.weights.model_folder import load_model, save_model
from infinity_jax.weights.placement import place, place_model


@functools.cache
def pipeline():
    return InfinityPipeline(place_model(small_model()), max_batch=2)


@functools.cache
def three():
    return pipeline()(['a red apple', 'a ghost on a blue background', 'a red apple'], seed=1)


def test_images_of_prompts():
    generated = three()
    assert generated.pixels.shape == (3, 6, 4, 3) and generated.pixels.dtype == np.uint8
    assert [(image.size, image.mode) for image in generated.images] == [((4, 6), 'RGB')] * 3
    assert (np.asarray(generated.images[2]) == generated.pixels[2]).all()
    assert generated.prompts == ('a red apple', 'a ghost on a blue background', 'a red apple')
    assert generated.seeds == ((1, 0), (1, 1), (1, 2))
    assert (generated.pixels[0] != generated.pixels[2]).any()  # one prompt, two keys
    assert pipeline().decoder_precision == 'float32'  # what 'auto' is on a CPU


def test_a_seed_repeats_and_another_differs():
    prompts = list(three().prompts)
    assert (pipeline()(prompts, seed=1).pixels == three().pixels).all()
    assert (pipeline()(prompts, seed=2).pixels != three().pixels).any()


def test_image_i_does_not_depend_on_how_many_others_are_asked_for():
    first = pipeline()(['a red apple', 'a ghost on a blue background'], seed=1)
    assert (first.pixels == three().pixels[:2]).all()
    # Another batch size is another program: a bit on a knife's edge may fall otherwise.
    alone = InfinityPipeline(place_model(small_model()), max_batch=1)('a red apple', seed=1)
    assert (alone.pixels[0] == three().pixels[0]).mean() > 0.9


def test_a_rate_of_flips_of_zero_runs_the_program_without_flips():
    job = GenerationJob(list(three().prompts), list(three().seeds), pipeline().schedule)
    with compilations() as compiled:
        assert (np.concatenate([*pipeline().run(job)]) == three().pixels).all()
    assert not compiled
    flipped = np.concatenate([*pipeline().run(dataclasses.replace(job, flip_rate=0.5))])
    assert (flipped != three().pixels).any(axis=(1, 2, 3)).all()
    with compilations() as compiled:  # another rate is the same program
        more = np.concatenate([*pipeline().run(dataclasses.replace(job, flip_rate=0.9))])
    assert not compiled and (more != flipped).any()


@pytest.mark.parametrize('rate', [-0.1, 1.5, float('nan')])
def test_a_rate_of_flips_is_a_probability(rate):
    with pytest.raises(UserError, match=f'rate of flips is {rate:g}; wanted a probability, 0 to 1'):
        GenerationJob(['cat'], [(0, 0)], SCHEDULE, flip_rate=rate)


def test_num_repeats_each_prompt_in_turn():
    generated = pipeline()(['a ghost', 'a red apple'], num=2, seed=1)
    assert generated.prompts == ('a ghost', 'a ghost', 'a red apple', 'a red apple')
    assert generated.pixels.shape[0] == 4


def test_images_of_one_prompt_are_encoded_once():
    pipe, seen = InfinityPipeline(place_model(small_model()), max_batch=4), []
    encoder = pipe._prompt_encoder
    pipe._prompt_encoder = lambda batches, negative: (
        seen.append([list(b) for b in batches]) or encoder(seen[-1], negative)
    )
    pipe._prompt_encoder.warn_of_losses = encoder.warn_of_losses
    shared = pipe(['a ghost', 'a red apple'], num=2, seed=1).pixels
    assert seen == [[['a ghost', 'a red apple']]]
    apart = pipe(['a ghost', 'a ghost', 'a red apple', 'a red apple'], seed=1).pixels
    assert len(seen[1][0]) == 4
    # Another batch is another program: a bit on a knife's edge may fall otherwise.
    assert (shared == apart).mean() > 0.9


def test_stream_yields_batches_and_no_padding():
    batches = list(pipeline().stream(['a ghost'] * 5))
    assert [len(batch) for batch in batches] == [2, 2, 1]


@pytest.mark.parametrize('layerwise', [False, True], ids=['one program', 'layerwise'])
def test_prompts_seeds_and_settings_do_not_recompile(monkeypatch, layerwise):
    monkeypatch.setattr(generator_module, 'LAYERWISE_BYTES', 0 if layerwise else 2**40)
    pipe = InfinityPipeline(place_model(small_model()), max_batch=2)
    assert pipe._generator.layerwise == layerwise
    with compilations() as first:
        pipe(['an apple', 'cat'], negative='green')
    assert first
    with compilations() as later:
        pipe(['an apple', 'a very long prompt about a small ghost'], negative='red', seed=9)
        pipe(['cat', 'an apple'], negative='a very long text', seed=2**32 - 1)
        sampling = SamplingConfig(guidance=(2.0,), temperature=(0.7,))
        pipe(['an apple', 'cat'], negative='green', sampling=sampling)
        sampling = SamplingConfig(guidance=(1.0, 2.0, 3.0), temperature=(0.7, 0.8, 0.9))
        pipe(['cat', 'cat'], negative='green', sampling=sampling)
    assert not later


def test_the_prompt_matters_and_so_does_a_negative_one():
    other = pipeline()(['a cat', 'a ghost on a blue background'], seed=1).pixels
    assert (other[0] != three().pixels[0]).any()
    assert (other[1] == three().pixels[1]).all()
    negative = pipeline()(list(three().prompts[:2]), seed=1, negative='green').pixels
    assert (negative != three().pixels[:2]).any()


def test_prompts_are_rewritten_before_they_are_read():
    rewriting = InfinityPipeline(
        place_model(small_model()),
        max_batch=2,
        rewrite_prompt=lambda prompt: prompt.replace('cat', 'red apple'),
    )
    generated = rewriting(['a cat', 'a ghost on a blue background'], seed=1)
    assert (generated.pixels == three().pixels[:2]).all()
    assert generated.prompts[0] == 'a cat'


def test_a_saved_folder_generates_the_same_images(tmp_path):
    save_model(tmp_path / 'model', small_model())
    loaded = InfinityPipeline.from_pretrained(tmp_path / 'model', max_batch=2)
    assert (loaded(list(three().prompts), seed=1).pixels == three().pixels).all()


def test_a_repository_on_the_hub_generates_like_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    repository, commit = tmp_path / 'models--org--tiny', 'c' * 40
    save_model(repository / 'snapshots' / commit, small_model())
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'v1').write_text(commit)
    loaded = InfinityPipeline.from_pretrained(
        'org/tiny', revision='v1', cache_dir=tmp_path, max_batch=2
    )
    assert (loaded(list(three().prompts), seed=1).pixels == three().pixels).all()


def test_a_cut_off_save_still_generates(tmp_path):
    save_model(tmp_path / '.model.previous', small_model())
    assert InfinityPipeline.from_pretrained(tmp_path / 'model').schedule == pipeline().schedule


def test_from_pretrained_takes_dtype_and_size(tmp_path):
    config = dataclasses.replace(TRANSFORMER, max_scales=7)
    params = transformer_variables(config)['params']
    sixteen = dataclasses.replace(TOKENIZER, channel_multipliers=(1, 1, 1, 1, 2))
    parts = changed(
        small_model(),
        transformer_config=config,
        transformer_params=params,
        tokenizer_config=sixteen,
        tokenizer_params=tokenizer_variables(sixteen)['params'],
        schedule=None,
    )
    save_model(tmp_path / 'm', parts)
    loaded = InfinityPipeline.from_pretrained(tmp_path / 'm', dtype='bfloat16', size=(120, 250))
    assert loaded.schedule == ScaleSchedule.for_image(0.5, '0.06M')
    assert loaded.image_size == (176, 352)
    kernel = loaded._generator.params.transformer['blocks']['ffn']['up']['kernel']
    assert kernel.dtype == jnp.bfloat16
    with pytest.raises(UserError, match='13 scales, transformer.max_scales is 7'):
        InfinityPipeline.from_pretrained(tmp_path / 'm')


def test_nothing_is_read_where_memory_is_short(tmp_path, monkeypatch):
    save_model(tmp_path / 'm', small_model())
    (tmp_path / 'm' / 'transformer.safetensors').write_bytes(b'')
    monkeypatch.setattr(memory_plan, 'free_bytes', lambda device: 1000)
    with pytest.raises(UserError, match='this machine has 0.0 GB free'):
        InfinityPipeline.from_pretrained(tmp_path / 'm')


def test_weights_in_bfloat16_generate_what_float32_ones_generate_there():
    config = dataclasses.replace(TRANSFORMER, dtype='bfloat16')
    narrow = InfinityPipeline(place_model(changed(small_model(), transformer_config=config)))
    wide = InfinityPipeline(place_model(changed(small_model(), transformer_config=config)))
    params = small_model().transformer_params
    wide._generator.params = wide._generator.params._replace(transformer=params)
    assert (narrow('a cat').pixels == wide('a cat').pixels).all()


def test_an_offloaded_text_encoder_changes_no_image():
    offloading = InfinityPipeline(place_model(small_model(), offload_text=True), max_batch=2)
    assert (offloading(list(three().prompts), seed=1).pixels == three().pixels).all()


def test_more_than_one_batch_shows_progress(capsys):
    pipeline()(['a ghost'] * 2)
    assert capsys.readouterr().err == ''
    pipeline()(['a ghost'] * 3)
    assert 'generating' in capsys.readouterr().err


@functools.cache
def eight():
    config = MeshConfig(data=2, fsdp=2, tensor=2)
    mesh = make_mesh(config)
    return mesh, InfinityPipeline(place_model(small_model(), mesh=mesh), max_batch=2)


def test_a_mesh_generates_the_images_of_one_device():
    generated = eight()[1](list(three().prompts), seed=1)  # in one batch of four shares
    assert generated.pixels.shape == three().pixels.shape
    # Sums in another order: a bit on a knife's edge may fall otherwise.
    assert (generated.pixels == three().pixels).mean() > 0.99
    negative = eight()[1](['a cat'], negative='green').pixels
    assert (negative == pipeline()(['a cat', 'a cat'], negative='green').pixels[:1]).mean() > 0.99


def test_a_mesh_gets_its_weights_in_shards(tmp_path, monkeypatch):
    save_model(tmp_path / 'm', small_model())
    mesh, wanted = eight()

    def load_sharded(folder, dtype, parts, mesh, configs, verify):
        loaded = load_model(folder, dtype, parts, configs=configs, verify=verify)
        for name, config in (
            ('transformer_params', configs.transformer),
            ('tokenizer_params', configs.tokenizer),
            ('text_params', configs.text),
        ):
            if getattr(loaded, name) is not None:
                params = place(getattr(loaded, name), 'float32', config, mesh)
                loaded = dataclasses.replace(loaded, **{name: params})
        return loaded

    monkeypatch.setattr(loading, 'load_model', load_sharded)
    config = MeshConfig(data=2, fsdp=2, tensor=2)
    loaded = InfinityPipeline.from_pretrained(tmp_path / 'm', mesh=config, max_batch=2)
    for leaf in jax.tree.leaves(loaded._generator.params.transformer):
        assert len(leaf.sharding.device_set) == 8
    prompts = list(three().prompts)
    assert (loaded(prompts, seed=1).pixels == wanted(prompts, seed=1).pixels).all()


def test_schedule_is_the_folder_s_or_the_released_one():
    assert pipeline().schedule == ScaleSchedule.free(SCHEDULE.grids[:3])
    released = InfinityPipeline(place_model(changed(small_model(), schedule=None)))
    assert released.schedule == ScaleSchedule.for_image(1.0, '1M')


@pytest.mark.parametrize(
    'part', ['transformer_params', 'tokenizer_params', 'text_params', 'text_tokenizer']
)
def test_an_incomplete_model_is_a_user_error(part):
    with pytest.raises(UserError, match=f'the model has no {part}'):
        InfinityPipeline(place_model(changed(small_model(), **{part: None})))


@pytest.mark.parametrize('prompts', ['', '  ', ['a cat', ''], []])
def test_an_empty_prompt_is_a_user_error(prompts):
    with pytest.raises(UserError, match='write what the image should show'):
        pipeline()(prompts)


def test_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match='nowhere'):
        InfinityPipeline.from_pretrained(tmp_path / 'nowhere')


@pytest.mark.parametrize('seed', [-1, 2**32, ((0, 3),), 0.5])
def test_a_seed_that_makes_no_key_is_a_user_error(seed):
    with pytest.raises(
        UserError, match=f'seed is {re.escape(repr(seed))}; wanted a whole number from 0'
    ):
        pipeline()('a cat', seed=seed)


def test_settings_for_another_number_of_scales_are_a_user_error():
    with pytest.raises(UserError, match='guidance lists 2 numbers for 3 scales'):
        pipeline()('a cat', sampling=SamplingConfig(guidance=(1.0, 2.0)))


def test_guidance_that_memory_was_not_planned_for_is_refused():
    unguided = InfinityPipeline(place_model(small_model()), guided=False)
    with pytest.raises(UserError, match='guidance is 3, .*: set guidance to 1, or load the model'):
        unguided('a cat')
    assert unguided('a cat', sampling=SamplingConfig(guidance=1)).pixels.shape[0] == 1


def test_nothing_is_compiled_for_an_announced_call_that_would_be_refused(tmp_path, monkeypatch):
    save_model(tmp_path / 'model', small_model())
    monkeypatch.setattr(loading, 'calls_for', None)
    request = GenerationRequest(('a cat',))
    with pytest.raises(UserError, match='guidance is 3, .* load the model with guided=True'):
        InfinityPipeline.from_pretrained(tmp_path / 'model', guided=False, request=request)


def test_an_unknown_option_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(TypeError, match='from_pretrained\\(\\) has no option aspect'):
        InfinityPipeline.from_pretrained(tmp_path / 'nowhere', aspect='1:1')


def test_a_blank_negative_prompt_is_none_and_one_without_guidance_is_said():
    prompts = list(three().prompts[:2])
    plain = pipeline()(prompts, seed=1).pixels
    assert (pipeline()(prompts, seed=1, negative=' \u200b').pixels == plain).all()
    scales = len(pipeline().schedule)
    for unguided in (
        SamplingConfig(guidance=(1.0,)),
        SamplingConfig(guidance=(3.0,), unguided_scales=scales),
        SamplingConfig(guidance=(*(1.0,) * (scales - 1), 3.0), unguided_scales=1),
    ):
        with pytest.warns(UserWarning, match='negative prompt has no effect: guidance is 1, or'):
            pixels = pipeline()(prompts, seed=1, negative='green', sampling=unguided).pixels
        assert (pixels == pipeline()(prompts, seed=1, sampling=unguided).pixels).all()
