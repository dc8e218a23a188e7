"""Editing: given bits in the generation program, and what a user gets of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation import compilations, generation_inputs, small_model
from helpers.models import changed
from helpers.tiny import QUICK_COMPILE, TOKENIZER, tokenizer_variables
from PIL import Image

from infinity_jax.errors import UserError
from infinity_jax.inference import generator as generator_module
from infinity_jax.inference.edit import Edit, schedule_for
from infinity_jax.inference.executables import Executables, call_jitted, describe_call
from infinity_jax.inference.generate import generate_bits
from infinity_jax.inference.given_bits import GivenBits, Margins, with_given_bits
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.sampling import GenerationSettings, SamplingConfig
from infinity_jax.inference.warmup import GenerationRequest, calls_for
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, make_mesh
from infinity_jax.tokenizer.quantizer import (
    accumulate,
    codes_from_bits,
    normalised_residual,
    quantize,
)
from infinity_jax.transformer.model import Transformer
from infinity_jax.weights.placement import place_model

SIZE = (6, 4)  # of the small model's images
PROMPT, SOURCE_PROMPT = 'a red apple', 'a ghost'
LAYERWISE = pytest.mark.parametrize('layerwise', [False, True], ids=['one program', 'layerwise'])


def image(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def lower_half(size=SIZE):
    mask = np.zeros(size, bool)
    mask[size[0] // 2 :] = True
    return mask


@functools.cache
def pipeline(layerwise=False):
    pipe = InfinityPipeline(place_model(small_model()), max_batch=1)
    if layerwise:
        limit, generator_module.LAYERWISE_BYTES = generator_module.LAYERWISE_BYTES, 0
        pipe = InfinityPipeline(place_model(small_model()), max_batch=1)
        generator_module.LAYERWISE_BYTES = limit
    assert pipe._generator.layerwise == layerwise
    return pipe


def edited(edit, layerwise=False, **options):
    (pixels,) = pipeline(layerwise).edit(edit, **options).pixels
    return pixels


@LAYERWISE
def test_with_all_bits_given_the_result_is_the_reconstruction(layerwise):
    for seed in range(5):
        result = edited(Edit(image(seed), PROMPT, strength=0.0), layerwise)
        assert (result == pipeline().reconstruct(image(seed))).all()


@LAYERWISE
def test_with_no_bit_given_the_result_is_plain_generation(layerwise):
    edits = [Edit(image(i), PROMPT, strength=1.0) for i in range(2)]
    results = pipeline(layerwise).edit(edits, seed=3)
    wanted = pipeline(layerwise)([PROMPT, PROMPT], seed=3)
    assert (np.stack(results.pixels) == wanted.pixels).all()
    assert results.seeds == wanted.seeds and results.prompts == wanted.prompts
    assert [each.size for each in results.images] == [SIZE[::-1]] * 2


@LAYERWISE
def test_masks_strengths_tolerances_and_seeds_do_not_recompile(layerwise):
    mask = lower_half()
    pipe = pipeline(layerwise)
    pipe.edit(Edit(image(), PROMPT, mask, composite=False))
    pipe.edit(Edit(image(), PROMPT, source_prompt=SOURCE_PROMPT))
    with compilations() as later:
        pipe.edit(Edit(image(1), 'a cat', ~mask, composite=False), seed=7)
        for strength in (0.0, 0.4, 1.0):
            pipe.edit(Edit(image(2), 'a cat', strength=strength))
        pipe.edit(Edit(image(3), 'a dog', mask, strength=0.3, feather=0))
        edit = Edit(image(4), 'a dog', source_prompt='a tree', tolerance=2.0, strength=0.7)
        pipe.edit(edit, seed=9, sampling=SamplingConfig(guidance=2.0, temperature=0.3))
    assert not later


@pytest.mark.numeric
def test_kept_bits_are_those_of_the_residual_of_what_was_accumulated():
    schedule = ScaleSchedule.free(((1, 1), (2, 2), (4, 3)))
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.standard_normal((3, 4, 3, 4)), jnp.float32)
    kept = tuple(jnp.asarray(rng.random((3, *grid)) < 0.5) for grid in schedule.grids)
    given = GivenBits(features, kept, jnp.full(3, -jnp.inf))
    inputs = generation_inputs()._replace(given=given)
    generate = jax.jit(
        generate_bits, static_argnames=('model', 'settings'), compiler_options=QUICK_COMPILE
    )
    config = small_model().configs.transformer
    variables = {'params': small_model().transformer_params}
    settings = GenerationSettings(schedule)
    result = generate(Transformer(config), variables, inputs, settings)
    total = jnp.zeros_like(features)
    for scale, grid in enumerate(schedule.grids):
        source = normalised_residual(features, total, grid) > 0
        assert (result.bits[scale] == source)[kept[scale]].all()
        total = accumulate(total, codes_from_bits(result.bits[scale]))
    np.testing.assert_allclose(result.total_Bhwd, total, atol=1e-6)
    own = quantize(features, schedule.grids).bits
    assert any((a != b)[k].any() for a, b, k in zip(result.bits, own, kept, strict=True))


def test_a_bit_is_kept_unless_the_prompt_makes_it_too_unlikely():
    shape = (2, 1, 1, 3)
    features = jnp.ones(shape)  # the source's bits are all 1
    given = GivenBits(features, (jnp.zeros((2, 1, 1), bool),), jnp.array([0.5, -jnp.inf]))
    other = jnp.zeros(shape)
    prompt = jnp.broadcast_to(jnp.array([1.0, -0.4, -2.0]), shape)
    sampled = jnp.zeros(shape, bool)
    # log sigmoid(m) - log sigmoid(0) is 0.38, -0.22 and -1.43 nats.
    bits = with_given_bits(given, jnp.zeros(shape), sampled, Margins(prompt, other), 0)
    assert bits.tolist() == [[[[True, True, False]]], [[[False] * 3]]]
    assert not with_given_bits(given, jnp.zeros(shape), sampled, None, 0).any()


def test_words_that_change_nothing_keep_everything():
    kept = edited(Edit(image(), PROMPT, source_prompt=PROMPT, tolerance=1e-3))
    assert (kept == pipeline().reconstruct(image())).all()
    far = edited(Edit(image(), PROMPT, source_prompt=SOURCE_PROMPT, tolerance=0.0))
    assert (far != kept).any()


def test_editing_by_words_needs_the_logits_of_both_texts():
    edit = Edit(image(), PROMPT, source_prompt=SOURCE_PROMPT)
    for options in (
        {'sampling': SamplingConfig(guidance=1.0)},
        {'sampling': SamplingConfig(guidance_layer=-1)},
        {'sampling': SamplingConfig(unguided_scales=1)},
        {'negative': 'green'},
    ):
        with pytest.raises(UserError, match='source prompt|two prompts'):
            pipeline().edit(edit, **options)


def test_outside_of_the_mask_pixels_are_the_source_s():
    size = (24, 20)
    source, mask = image(1, size), lower_half(size)
    result = edited(Edit(source, PROMPT, mask))
    assert result.shape == source.shape
    assert (result[~mask] == source[~mask]).all() and (result[mask] != source[mask]).any()
    own = edited(Edit(source, PROMPT, mask, composite=False))
    assert (own[~mask] != source[~mask]).any()


@LAYERWISE
def test_without_compositing_the_composite_goes_through_the_tokenizer(layerwise):
    edits = [Edit(image(i), PROMPT, lower_half(), feather=i) for i in range(3)]
    wanted = [
        pipeline().reconstruct(pixels) for pixels in pipeline(layerwise).edit(edits, seed=2).pixels
    ]
    edits = [dataclasses.replace(edit, composite=False) for edit in edits]
    assert (np.stack(pipeline(layerwise).edit(edits, seed=2).pixels) == np.stack(wanted)).all()


def test_nothing_is_encoded_again_where_all_or_no_bits_are_given():
    everything = np.ones(SIZE, bool)
    free = edited(Edit(image(), PROMPT, everything, composite=False), seed=3)
    assert (free == pipeline()(PROMPT, seed=3).pixels[0]).all()
    same = edited(Edit(image(), PROMPT, lower_half(), strength=0.0, composite=False))
    assert (same == pipeline().reconstruct(image())).all()


class Recorder(Executables):
    """Calls by jit, and keeps the description of each call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def call(self, function, static, traced):
        self.calls.append(describe_call(function, static, traced))
        return call_jitted(function, static, traced)


@pytest.mark.parametrize('source_prompt', [None, SOURCE_PROMPT])
def test_a_request_names_the_programs_of_an_edit(source_prompt):
    recorder = Recorder()
    small = place_model(small_model())
    edit = Edit(image(), PROMPT, source_prompt=source_prompt)
    InfinityPipeline(small, max_batch=1, executables=recorder).edit(edit)
    request = GenerationRequest((PROMPT,), negative=source_prompt, edited=SIZE)
    announced = [describe_call(*call) for call in calls_for(request, small.configs, 1)]
    assert len(announced) == 3 and all(call in recorder.calls for call in announced)
    assert all(call in announced for call in recorder.calls)


def test_edits_of_all_kinds_in_one_call_are_those_they_would_be_alone():
    edits = [
        Edit(image(0), PROMPT, lower_half()),
        Edit(image(1), 'a cat', source_prompt='a tree'),
        Edit(image(2), 'a cat'),
        Edit(image(3, (12, 8)), 'a cat', strength=0.3),
    ]
    together = pipeline().edit(edits, num=2, seed=5)
    assert together.prompts == tuple(edit.prompt for edit in edits for _ in range(2))
    assert [pixels.shape for pixels in together.pixels[4:]] == [(6, 4, 3)] * 2 + [(12, 8, 3)] * 2
    alone = pipeline().edit([edits[0]], num=2, seed=5)
    assert (np.stack(alone.pixels) == np.stack(together.pixels[:2])).all()


def test_a_mesh_edits_as_one_device_does():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    eight = InfinityPipeline(place_model(small_model(), mesh=mesh), max_batch=4)
    edits = [Edit(image(i), PROMPT, lower_half(), composite=False) for i in range(3)]
    pixels = np.stack(eight.edit(edits).pixels)
    wanted = np.stack(pipeline().edit(edits).pixels)
    # Sums in another order: a bit on a knife's edge may fall otherwise.
    assert (np.abs(pixels.astype(int) - wanted) <= 1).mean() > 0.97
    error = eight.reconstruct(image()).astype(int) - pipeline().reconstruct(image())
    assert np.abs(error).max() <= 1


def test_reconstruction_of_the_first_scales():
    grids = pipeline().schedule.grids
    features = pipeline()._editor._encoder([image()])[0]
    for scales in (1, len(grids)):
        bits = quantize(jnp.asarray(features[None]), grids).bits[:scales]
        total = jnp.zeros_like(features[None])
        for scale_bits in bits:
            total = accumulate(total, codes_from_bits(scale_bits))
        wanted = np.asarray(pipeline()._generator.decode(total))[0]
        assert (pipeline().reconstruct(image(), scales=scales) == wanted).all()
    with pytest.raises(UserError, match='scales is 4; wanted 1 to 3'):
        pipeline().reconstruct(image(), scales=4)


def test_the_schedule_is_that_of_the_nearest_released_ratio():
    own = ScaleSchedule.for_image(1.0, '0.25M')
    assert schedule_for((100, 180), own) == ScaleSchedule.for_image(0.571, '0.25M')
    free = ScaleSchedule.free(((1, 1), (2, 2)))
    assert schedule_for((100, 180), free) == free
    with pytest.warns(UserWarning, match='1 of 1 images are stretched .* 40 x 6 pixels to 4 x 6'):
        assert edited(Edit(image(0, (6, 40)), PROMPT)).shape == (6, 40, 3)


def test_a_model_without_an_encoder_is_a_user_error():
    decoder = {'decoder': tokenizer_variables(TOKENIZER)['params']['decoder']}
    pipe = InfinityPipeline(place_model(changed(small_model(), tokenizer_params=decoder)))
    with pytest.raises(UserError, match='the tokenizer has no encoder'):
        pipe.edit(Edit(image(), PROMPT))


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'strength': 1.5}, 'strength is 1.5; wanted 0'),
        ({'strength': float('nan')}, 'strength is nan'),
        ({'tolerance': -1.0}, 'tolerance is -1.0 nats'),
        ({'feather': -1}, 'feather is -1 pixels'),
    ],
)
def test_numbers_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        Edit(image(), PROMPT, **fields)


def test_no_edit_and_images_of_other_kinds():
    with pytest.raises(UserError, match='no edit given'):
        pipeline().edit([])
    for wrong in (image()[..., 0], image().astype(float), image()[:0]):
        with pytest.raises(UserError, match=r'wanted uint8 \(Y, X, 3\)'):
            pipeline().edit(Edit(wrong, PROMPT))


def test_an_edit_of_a_file_and_of_its_pixels_are_the_same(tmp_path):
    Image.fromarray(image()).save(tmp_path / 'x.png')
    edit = Edit(tmp_path / 'x.png', PROMPT)
    assert (edited(edit) == edited(dataclasses.replace(edit, image=image()))).all()
