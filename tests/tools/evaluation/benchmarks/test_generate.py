"""Layouts as the judges read them, and runs that are interrupted and continued."""

import json
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from helpers.data_folders import encoded
from helpers.generation import small_model
from helpers.models import changed
from PIL import Image

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import make_mesh
from infinity_jax.tools.evaluation.benchmarks import settings
from infinity_jax.tools.evaluation.benchmarks.dry_run import dry_run_lines, duration, size
from infinity_jax.tools.evaluation.benchmarks.generate import generate_missing
from infinity_jax.tools.evaluation.benchmarks.image_files import ImageWriter, is_whole
from infinity_jax.tools.evaluation.benchmarks.plan import plan_run, settings_of
from infinity_jax.tools.evaluation.benchmarks.readers import READERS
from infinity_jax.tools.evaluation.benchmarks.settings import BenchmarkOptions
from infinity_jax.weights.model_folder import save_model

PROMPTS = ('a photo of a cat', 'a photo of two dogs', 'a red apple', 'a photo of a cat', 'a ghost')
LINES = tuple(
    json.dumps({'tag': 'single_object', 'include': [{'class': 'x', 'count': 1}], 'prompt': prompt})
    for prompt in PROMPTS
)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    square = changed(small_model(), schedule=ScaleSchedule.free(((1, 1), (2, 2))))
    save_model(folder / 'square', square)
    return folder / 'square'


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    path.write_text('\n'.join(LINES) + '\n')
    return path


def planned(name, prompts, out, model, *, num=None, texts=None, **options):
    options = {'max_batch': 4, 'checkpoint': str(model), **options}
    num = {'geneval': 2, 'dpg': 4, 'imagereward': 4}.get(name, 1) if num is None else num
    benchmark = READERS[name](prompts, num, out)
    return plan_run(benchmark, BenchmarkOptions(**options), out, texts or {})


def generated(*args, **options):
    plan = planned(*args, **options)
    return generate_missing(plan, settings_of(plan, str(args[1]), None))


def contents(folder):
    """Path below the folder -> bytes, of all files."""
    files = [path for path in folder.rglob('*') if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def read_as_geneval_does(folder):
    """Prompt -> number of images, by the rules of its evaluate_images.py."""
    found = []
    for name in sorted(os.listdir(folder)):
        if not (folder / name).is_dir() or not name.isdigit():
            continue
        metadata = json.loads((folder / name / 'metadata.jsonl').read_text())
        images = [f for f in os.listdir(folder / name / 'samples') if re.match(r'\d+\.png', f)]
        sizes = {Image.open(folder / name / 'samples' / image).size for image in images}
        found.append((metadata, sorted(images), sizes))
    return found


def test_geneval_s_judge_finds_its_lines_and_images(prompts, model, tmp_path):
    assert generated('geneval', prompts, tmp_path / 'out', model) == 10
    names = ['0000.png', '0001.png']
    expected = [(json.loads(line), names, {(4, 4)}) for line in LINES]
    assert read_as_geneval_does(tmp_path / 'out') == expected
    run = json.loads((tmp_path / 'out' / 'run.json').read_text())
    assert run['sampling']['guidance'] == [4.0] and run['sampling']['temperature'] == [1.0]
    assert run['images_at_once'] == 4 and run['prompts']['count'] == 5
    assert run['versions']['jax'] == jax.__version__ and len(run['model']['sha256']) == 64


def interrupted(run):
    """`run`, which is stopped once, before the images of the third group."""
    calls = iter(range(1, 1000))

    def stopped(self, job):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return run(self, job)

    return stopped


def test_an_interrupted_run_ends_with_the_bytes_of_an_undisturbed_one(
    prompts, model, tmp_path, monkeypatch
):
    generated('geneval', prompts, tmp_path / 'whole', model)
    monkeypatch.setattr(InfinityPipeline, 'run', interrupted(InfinityPipeline.run))
    out = tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        generated('geneval', prompts, out, model)
    before = contents(out)
    assert 0 < len(before) < len(contents(tmp_path / 'whole'))
    (out / '00001/samples/0000.png').write_bytes(before['00001/samples/0000.png'][:-9])
    (out / '00000/metadata.jsonl').write_text('{')
    kept = (out / '00001/samples/0001.png').stat().st_mtime_ns
    # Of the second group, some files may have been written before the interruption.
    assert generated('geneval', prompts, out, model) in (6, 10)
    assert contents(out) == contents(tmp_path / 'whole')
    assert (out / '00001/samples/0001.png').stat().st_mtime_ns == kept
    assert generated('geneval', prompts, out, model) == 0  # no model is loaded
    assert not [path for path in out.rglob('.*')]


def test_random_numbers_start_again_with_each_prompt_or_do_not(prompts, model, tmp_path):
    generated('geneval', prompts, tmp_path / 'prompt', model)
    generated('geneval', prompts, tmp_path / 'image', model, seeds='image')
    pixels = {}
    for name in ('prompt', 'image'):
        files = (tmp_path / name / f'0000{i}/samples/000{j}.png' for i in (0, 3) for j in (0, 1))
        pixels[name] = [np.asarray(Image.open(file)) for file in files]
    assert (pixels['prompt'][0] != pixels['prompt'][1]).any()
    assert all((a == b).all() for a, b in zip(pixels['prompt'][:2], pixels['prompt'][2:]))
    assert all((a != b).any() for a, b in zip(pixels['image'][:2], pixels['image'][2:]))
    assert (pixels['prompt'][0] == pixels['image'][0]).all()


def test_rewritten_prompts_are_generated_and_the_judge_gets_the_prompts(prompts, model, tmp_path):
    generated('geneval', prompts, tmp_path / 'plain', model)
    texts = dict.fromkeys(PROMPTS, 'a photo of a cat')
    plan = planned('geneval', prompts, tmp_path / 'out', model, texts=texts)
    generate_missing(plan, settings_of(plan, str(prompts), 'rewritten.json'))
    assert read_as_geneval_does(tmp_path / 'out')[1][0] == json.loads(LINES[1])
    cat = (tmp_path / 'plain/00000/samples/0001.png').read_bytes()
    assert (tmp_path / 'out/00001/samples/0001.png').read_bytes() == cat
    with pytest.raises(UserError, match=r'rewritten.sha256 was \w{64}, now it is None'):
        generated('geneval', prompts, tmp_path / 'out', model)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'sampling': SamplingConfig()}, r'sampling.guidance was \[4.0\], now it is \[3.0\]'),
        ({'seed': 3}, 'seed was 0, now it is 3'),
        ({'num': 3}, 'prompts.sha256 was'),
        ({'max_batch': 2}, 'images_at_once was 4, now it is 2'),
    ],
)
def test_a_run_continues_with_its_own_settings_alone(prompts, model, tmp_path, options, message):
    plan = planned('geneval', prompts, tmp_path / 'out', model)
    settings.claim(tmp_path / 'out', settings_of(plan, str(prompts), None))
    with pytest.raises(UserError, match=message):
        generated('geneval', prompts, tmp_path / 'out', model, **options)


def test_the_batch_of_a_run_is_kept_whatever_memory_is_free_later(prompts, model, tmp_path):
    plan = planned('geneval', prompts, tmp_path / 'out', model)
    settings.claim(tmp_path / 'out', settings_of(plan, str(prompts), None))
    later = planned('geneval', prompts, tmp_path / 'out', model, max_batch=None)
    assert later.images_at_once == 4
    assert planned('geneval', prompts, tmp_path / 'new', model, max_batch=None).images_at_once == 10


def test_other_versions_are_named_and_accepted(prompts, model, tmp_path):
    plan = planned('geneval', prompts, tmp_path / 'out', model)
    old = settings_of(plan, '/elsewhere', None)
    settings.claim(tmp_path / 'out', {**old, 'versions': {**old['versions'], 'jax': '0.1'}})
    with pytest.warns(UserWarning, match=r'versions.jax was 0.1, now it is .*; new images may'):
        settings.claim(tmp_path / 'out', settings_of(plan, str(prompts), None))


def test_dtypes_that_an_earlier_version_left_open_are_accepted(prompts, model, tmp_path):
    plan = planned('geneval', prompts, tmp_path / 'out', model)
    now = settings_of(plan, str(prompts), None)
    assert (now['model']['dtype'], now['model']['text_dtype']) == ('float32', 'float32')
    old = {**now, 'model': {**now['model'], 'dtype': None, 'text_dtype': None}}
    settings.claim(tmp_path / 'out', old)
    with pytest.warns(UserWarning, match='model.dtype was None, now it is float32; new images'):
        settings.claim(tmp_path / 'out', now)
    other = {**old, 'model': {**old['model'], 'dtype': 'bfloat16'}}
    settings.claim(tmp_path / 'other', other)
    with pytest.raises(UserError, match='model.dtype was bfloat16, now it is float32'):
        settings.claim(tmp_path / 'other', now)


def test_a_folder_of_something_else_is_left_alone(prompts, model, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'thesis.txt').write_text('')
    with pytest.raises(UserError, match='has files but no run.json; name a new folder'):
        generated('geneval', prompts, tmp_path / 'out', model)


def test_dpg_gets_grids_of_four_in_a_folder_of_nothing_else(model, tmp_path):
    (tmp_path / 'prompts').mkdir()
    for name, prompt in (('b', 'a ghost'), ('a', 'a red apple')):
        (tmp_path / 'prompts' / f'{name}.txt').write_text(prompt + '\n')
    generated('dpg', tmp_path / 'prompts', tmp_path / 'out', model)
    assert sorted(os.listdir(tmp_path / 'out' / 'images')) == ['a.png', 'b.png']
    grid = np.asarray(Image.open(tmp_path / 'out' / 'images' / 'a.png'))
    assert grid.shape == (8, 8, 3)
    pipeline = InfinityPipeline.from_pretrained(model, max_batch=4)
    sampling = SamplingConfig(guidance=4.0, temperature=1.0)
    images = pipeline('a red apple', num=4, sampling=sampling).pixels
    for image, y, x in zip(images, (0, 0, 4, 4), (0, 4, 0, 4), strict=True):
        assert (grid[y : y + 4, x : x + 4] == image).all()


def test_dpg_wants_squares(tmp_path):
    save_model(tmp_path / 'model', small_model())
    (tmp_path / 'a.txt').write_text('a ghost')
    with pytest.raises(UserError, match='dpg wants squares.* the image size is 4 x 6'):
        generated('dpg', tmp_path, tmp_path / 'out', tmp_path / 'model')


def test_imagereward_gets_one_json_list_that_names_all_images(model, tmp_path):
    entries = [{'id': f'00{i}', 'prompt': prompt} for i, prompt in enumerate(PROMPTS[:2])]
    (tmp_path / 'p.json').write_text(json.dumps(entries))
    generated('imagereward', tmp_path / 'p.json', tmp_path / 'out', model)
    table = json.loads((tmp_path / 'out' / 'metadata.jsonl').read_text())
    for entry, given in zip(table, entries, strict=True):
        assert {key: entry[key] for key in given} == given
        paths = [pathlib.Path(path) for path in entry['gen_image_paths']]
        assert [path.name for path in paths] == [f'{given["id"]}_{j}.jpg' for j in range(4)]
        assert all(path.is_absolute() and Image.open(path).format == 'JPEG' for path in paths)


def test_hpsv2_gets_folders_of_styles_and_nothing_else(model, tmp_path):
    styles = {'anime': list(PROMPTS[:3]), 'photo': list(PROMPTS[3:])}
    (tmp_path / 'all.json').write_text(json.dumps(styles))
    generated('hpsv2', tmp_path / 'all.json', tmp_path / 'one', model, seeds='image')
    images = tmp_path / 'one' / 'images'
    assert {name: sorted(os.listdir(images / name)) for name in os.listdir(images)} == {
        'anime': ['00000.jpg', '00001.jpg', '00002.jpg'],
        'photo': ['00000.jpg', '00001.jpg'],
    }
    (tmp_path / 'styles').mkdir()
    for name, prompts in styles.items():
        (tmp_path / 'styles' / f'{name}.json').write_text(json.dumps(prompts))
    (tmp_path / 'styles' / 'drawbench.json').write_text('[]')  # of the package, no style
    separate = READERS['hpsv2'](tmp_path / 'styles', 1, tmp_path)
    assert separate == READERS['hpsv2'](tmp_path / 'all.json', 1, tmp_path)


def test_captions_get_copies_of_their_images_under_equal_names(model, tmp_path):
    (tmp_path / 'wide.jpg').write_bytes(encoded(20, 60))
    lines = [{'text': prompt, 'image_path': 'wide.jpg'} for prompt in PROMPTS]
    (tmp_path / 'captions.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    generated('captions', tmp_path / 'captions.jsonl', tmp_path / 'out', model, seeds='image')
    names = [f'00000{i}.png' for i in range(5)]
    for folder in ('pred', 'gt'):
        assert sorted(os.listdir(tmp_path / 'out' / folder)) == names
        assert Image.open(tmp_path / 'out' / folder / names[0]).size == (4, 4)
    (tmp_path / 'wide.jpg').write_bytes(b'no image')
    with pytest.raises(UserError, match='wide.jpg: not a readable image'):
        generated('captions', tmp_path / 'captions.jsonl', tmp_path / 'new', model, seeds='image')


def test_processes_share_the_groups(prompts, model, tmp_path):
    plan = planned('geneval', prompts, tmp_path, model)
    assert plan.groups() == [range(0, 2), range(2, 4), range(4, 5)]
    assert plan.groups(0, 2) == [range(0, 2), range(4, 5)]
    assert plan.groups(1, 2) == [range(2, 4)]
    ten = planned('geneval', prompts, tmp_path, model, num=10)  # more than fit at once
    assert ten.groups() == [range(i, i + 1) for i in range(5)]


@pytest.mark.numeric
def test_all_devices_of_a_host_generate_the_images_of_one(prompts, model, tmp_path):
    generated('geneval', prompts, tmp_path / 'one', model)
    mesh = make_mesh()
    plan = planned('geneval', prompts, tmp_path / 'eight', model, max_batch=1, mesh=mesh)
    assert plan.images_at_once == mesh.devices.size == 8
    generate_missing(plan, settings_of(plan, str(prompts), None))
    same = []
    for i in range(len(PROMPTS)):
        name = f'0000{i}/samples/0000.png'
        one, eight = (np.asarray(Image.open(tmp_path / run / name)) for run in ('one', 'eight'))
        same.append((one == eight).mean())
    assert np.mean(same) > 0.9  # sums in another order: a bit on a knife's edge may fall otherwise


def test_a_dry_run_writes_nothing_and_tells_counts_disk_and_time(prompts, model, tmp_path, capsys):
    out = tmp_path / 'out'
    command = ['evaluate', 'geneval', '--prompts', str(prompts), '--out', str(out), '--num', '2']
    command += ['--checkpoint', str(model), '--max-batch', '4', '--devices', '1']
    main([*command, '--dry-run'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('geneval: 5 prompts, 2 images each: 10 of 4 x 4 pixels')
    assert lines[1].startswith('disk: about 0.00 MB') and lines[2].startswith('time: at least')
    assert not out.exists()
    main(command)
    output = capsys.readouterr().out
    assert '10 images, 10 of them generated now' in output
    assert f'evaluate_images.py {out} --outfile {out}/results.jsonl' in output
    with pytest.raises(SystemExit):  # as the run itself would
        main([*command, '--cfg', '3', '--dry-run'])
    assert 'sampling.guidance was [4.0], now it is [3.0]' in capsys.readouterr().err
    lines = dry_run_lines(planned('geneval', prompts, out, model, max_batch=None))
    assert lines[0].endswith('0 are not there yet') and len(lines) == 2
    assert [duration(s) for s in (3, 200, 9000, 400000)] == [
        '3.0 s',
        '3.3 min',
        '2.5 h',
        '4.6 days',
    ]
    assert [size(count) for count in (3.6e5, 2.5e8)] == ['0.36 MB', '0.25 GB']


def test_half_an_image_is_not_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    with ImageWriter(tmp_path) as writer:
        for name in ('a.png', 'b.jpg'):
            writer.image(name, pixels)
    for name in ('a.png', 'b.jpg'):
        path = tmp_path / name
        content = path.read_bytes()
        assert is_whole(path, (6, 4)) and not is_whole(path, (4, 6))
        for half in (content[:-1], content[: len(content) // 2], b''):
            path.write_bytes(half)
            assert not is_whole(path, (6, 4))
    assert not is_whole(tmp_path / 'absent.png', (6, 4))


def test_a_failed_write_is_one_line_and_leaves_no_file(tmp_path):
    (tmp_path / 'file').write_text('')
    with (
        pytest.raises(UserError, match='cannot be written .*; the same command goes on'),
        ImageWriter(tmp_path) as writer,
    ):
        writer.text('file/x.txt', 'text')  # its folder is a file
    assert os.listdir(tmp_path) == ['file']
