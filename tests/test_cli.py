"""The console command: arguments, files, metadata and one-line errors; no model is run."""

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from helpers.paths import CONFIGS
from PIL import Image

from infinity_jax import cli
from infinity_jax.config import AUTO, CONVOLUTION_PRECISIONS, QuantizationConfig
from infinity_jax.errors import UserError
from infinity_jax.images import check_writable, save_image, save_png
from infinity_jax.inference import pipeline as pipeline_module
from infinity_jax.inference.pipeline import GeneratedImages
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.runtime import supervisor
from infinity_jax.scales import ScaleSchedule, nearest_ratio
from infinity_jax.tools.commands import generate_command
from infinity_jax.tools.commands.generate_command import output_paths

# What `generate` prints for the schedule of `FakePipeline` if a ratio or a size is asked for.
IMAGE_SIZE = (
    'image size: 16 x 16 pixels (width x height), released for height/width 0.500 and budget '
    '0.06M\n'
)
TALL = ('x', '--height', '64', '--width', '32')
# Flags whose help text names no default: others of their group decide, or nothing is meant.
NO_DEFAULT = {
    'help', 'prompts_file', 'height_over_width', 'height', 'width', 'lpips_heads', 'set',
}  # fmt: skip


class FakePipeline:
    """Generates flat grey images and records its arguments."""

    asked = {}
    schedule = ScaleSchedule.for_image(0.5, '0.06M')
    image_size = (16, 16)
    quantization = QuantizationConfig(cache='int8')  # as memory allows, not as asked
    dtype, text_dtype = 'float32', 'float16'  # as the card allows
    decoder_precision = 'tf32'

    @classmethod
    def from_pretrained(cls, folder, **options):
        cls.asked = {'folder': folder, **options}
        return cls()

    def __call__(self, prompts, *, num, seed, negative, sampling):
        type(self).asked |= {'negative': negative, 'sampling': sampling}
        if 'long' in prompts:
            warnings.warn('1 of 1 prompts is cut', stacklevel=2)
        prompts = tuple(prompt for prompt in prompts for _ in range(num))
        pixels = np.full((len(prompts), 16, 16, 3), 128, np.uint8)
        return GeneratedImages(
            pixels, prompts, tuple((seed, i) for i in range(len(prompts))), (0.1,)
        )


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(pipeline_module, 'InfinityPipeline', FakePipeline)
    return FakePipeline


def test_one_image_with_its_settings_inside(fake, tmp_path):
    out = tmp_path / 'apple.png'
    arguments = ['--seed', '3', '--cfg', '1,2,3,4', '--tau', '0.5', '--top-k', '1', '--out']
    cli.main(['generate', 'a red apple', *arguments, str(out), '--negative', 'a pear'])
    with Image.open(out) as image:
        assert image.size == (16, 16)
        assert image.text['prompt'] == 'a red apple' and image.text['seed'] == '3'
        assert image.text['guidance'] == '1.0,2.0,3.0,4.0' and image.text['negative'] == 'a pear'
        assert image.text['ratio'] == '0.500' and image.text['budget'] == '0.06M'
        assert image.text['height'] == '16' and image.text['width'] == '16'
        assert image.text['weights'] == 'full' and image.text['cache'] == 'int8'
        assert image.text['decoder'] == 'tf32'
        assert (image.text['dtype'], image.text['text_dtype']) == ('float32', 'float16')
        assert fake.asked['guided']
    assert fake.asked['sampling'].temperature == (0.5,) and fake.asked['sampling'].top_k == 1
    assert fake.asked['folder'] == pipeline_module.DEMO_FOLDER and fake.asked['max_batch'] == 1
    nothing = ('revision', 'dtype', 'height_over_width', 'budget', 'size')
    assert [fake.asked[name] for name in nothing] == [None] * 5


def test_size_model_and_dtype_reach_the_pipeline(fake, tmp_path, capsys):
    out = ['--out', str(tmp_path / 'x.png')]
    wide = ['--height-over-width', '0.5', '--budget', '1M', '--dtype', 'bfloat16']
    hub = ['--checkpoint', 'org/name', '--revision', 'v1', '--num', '20', '--max-batch', '3']
    cli.main(['generate', 'x', *wide, *hub, *out])
    wanted = {'folder': 'org/name', 'revision': 'v1', 'height_over_width': '0.5', 'budget': '1M'}
    assert (
        fake.asked.items() >= {**wanted, 'size': None, 'dtype': 'bfloat16', 'max_batch': 3}.items()
    )
    assert capsys.readouterr().err.startswith(f'{IMAGE_SIZE}time: ')
    cli.main(['generate', 'x', '--height', '300', '--width', '500', *out])
    assert fake.asked['size'] == (300, 500)
    printed = capsys.readouterr()
    assert printed.err.startswith(f'{IMAGE_SIZE}time: ')
    assert printed.out == f'{tmp_path / "x.png"}\n'
    cli.main(['generate', 'x', *out])
    assert capsys.readouterr().err.startswith('time: ')


def test_an_aspect_ratio_is_width_to_height(fake, tmp_path, capsys):
    out = ['--out', str(tmp_path / 'x.png')]
    for text, ratio, nearest in (
        ('16:9', 9 / 16, '0.571'),
        ('3:2', 2 / 3, '0.666'),
        ('1:1', 1, '1.000'),
        ('2.39:1', 1 / 2.39, '0.400'),
    ):
        cli.main(['generate', 'x', '--aspect-ratio', text, *out])
        assert (
            fake.asked['height_over_width'] == pytest.approx(ratio) and fake.asked['size'] is None
        )
        assert nearest_ratio(fake.asked['height_over_width']) == nearest
        assert capsys.readouterr().err.startswith(IMAGE_SIZE)


def test_the_former_name_of_the_ratio_works_and_prints_the_new_one(fake, tmp_path, capsys):
    cli.main(['generate', 'x', '--ratio', '0.5', '--out', str(tmp_path / 'x.png')])
    warning, size, *_ = capsys.readouterr().err.splitlines()
    assert warning.startswith('--ratio is now --height-over-width;')
    assert f'{size}\n' == IMAGE_SIZE and fake.asked['height_over_width'] == '0.5'
    with pytest.raises(SystemExit):
        cli.main(['generate', '--help'])
    printed = capsys.readouterr().out
    assert '--ratio' not in printed and '--aspect-ratio WIDTH:HEIGHT' in printed


def test_bench_takes_an_aspect_ratio_and_prints_the_image_size(monkeypatch, capsys):
    from infinity_jax.tools.bench import train as bench_train

    class Reached(Exception):
        pass

    def bench(workload, **options):
        raise Reached(workload.ratio)

    monkeypatch.setattr(bench_train, 'bench_train', bench)
    line = 'image size: {} pixels (width x height), released for height/width {} and budget 1M\n'
    for flags, ratio, printed in (
        (['--aspect-ratio', '16:9'], '0.571', line.format('1344 x 768', '0.571')),
        (['--height-over-width', '1.4'], '1.333', line.format('864 x 1152', '1.333')),
        ([], '1.000', ''),
    ):
        with pytest.raises(Reached, match=ratio):
            cli.main(['bench', 'train', '--budget', '1M', *flags])
        assert capsys.readouterr().err == printed


def test_help_names_the_defaults_of_sampling(capsys):
    for command in ('generate', 'compile'):
        with pytest.raises(SystemExit):
            cli.main([command, '--help'])
        printed = ' '.join(capsys.readouterr().out.split())
        defaults = SamplingConfig()
        for flag, default in (
            ('--cfg G', defaults.guidance[0]),
            ('--cfg-layer N', defaults.guidance_layer),
            ('--tau T', defaults.temperature[0]),
            ('--top-k K', defaults.top_k),
            ('--top-p P', defaults.top_p),
        ):
            text = printed.split(f' {flag} ')[-1].split(' --')[0]
            assert f'(default: {default})' in text, flag


def parsers(parser, name='infinity-jax'):
    """(name, parser) of a parser and all of its subcommands."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, child in action.choices.items():
                yield from parsers(child, f'{name} {command}')


def test_every_flag_has_a_help_text_and_every_optional_one_its_default():
    for name, parser in parsers(cli.build_parser()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, f'{name} {action.dest}'
            if action.option_strings and not action.required and action.help != argparse.SUPPRESS:
                has_default = 'default: ' in action.help or action.dest in NO_DEFAULT
                assert has_default, f'{name} {action.dest}'


def test_the_flag_of_the_decoder_takes_every_precision():
    (action,) = (
        action
        for name, parser in parsers(cli.build_parser())
        if name == 'infinity-jax generate'
        for action in parser._actions
        if action.dest == 'decoder_precision'
    )
    assert action.choices == [AUTO, *CONVOLUTION_PRECISIONS]


def test_a_warning_is_one_line(fake, tmp_path, capsys):
    cli.main(['generate', 'long', '--out', str(tmp_path / 'x.png')])
    assert capsys.readouterr().err.startswith('warning: 1 of 1 prompts is cut\ntime: ')


def test_a_place_that_cannot_be_written_is_found_before_generation(fake, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    fake.asked = {}
    with pytest.raises(SystemExit) as caught:
        cli.main(['generate', 'x', '--out', str(tmp_path / 'file' / 'x.png')])
    assert caught.value.code == 2 and fake.asked == {}
    assert 'cannot write' in capsys.readouterr().err


def test_data_and_loss_read_a_config_file(monkeypatch, tmp_path):
    from infinity_jax.tools import inspect_data
    from infinity_jax.tools.evaluation import loss as evaluate_loss

    asked = []
    monkeypatch.setattr(inspect_data, 'inspect_data', lambda c, **k: asked.append((c.task, k)))
    monkeypatch.setattr(inspect_data, 'measure_speed', lambda c, n: asked.append((c.task, n)))
    monkeypatch.setattr(evaluate_loss, 'evaluate_loss', lambda f, c, **k: asked.append((f, k)))
    configs = CONFIGS
    cli.main(['data', 'inspect', f'{configs}/t2i.py:demo', '--out', 'x.png', '--count', '3'])
    cli.main(['data', 'speed', f'{configs}/tokenizer.py', '--batches', '5'])
    loss = ['evaluate', 'loss', '--checkpoint', 'here', '--config']
    cli.main([*loss, f'{configs}/t2i.py', '--batches', '2'])
    assert asked == [
        ('t2i', {'count': 3, 'out': 'x.png'}), ('tokenizer', 5), ('here', {'num_batches': 2}),
    ]  # fmt: skip
    (tmp_path / 'other.py').write_text('get_config = lambda: {"task": "x"}')
    for config in ('nosuch.py', f'{configs}/t2i.py:huge', f'{tmp_path}/other.py'):
        with pytest.raises(SystemExit):
            cli.main(['data', 'inspect', config])
    for config in ([f'{configs}/tokenizer.py'], []):
        with pytest.raises(SystemExit):
            cli.main(loss[: 4 + len(config)] + config + (['--batches', '2'] if config else []))
    assert len(asked) == 3


def test_precompute_of_several_processes_is_supervised(monkeypatch, capsys):
    watched = []
    monkeypatch.setattr(supervisor, 'supervise', lambda: watched.append(sys.argv[2]))
    for command in ('speed', 'precompute'):
        arguments = ['data', command, 'nowhere.py', *(['--out', 'x'] * (command != 'speed'))]
        monkeypatch.setattr(sys, 'argv', ['infinity-jax', *arguments])
        with pytest.raises(SystemExit):
            cli.main()
    assert watched == ['precompute'] and 'nowhere.py' in capsys.readouterr().err


def test_a_config_file_is_changed_as_in_training(monkeypatch, capsys):
    from infinity_jax.tools import inspect_data

    asked = []
    monkeypatch.setattr(inspect_data, 'inspect_data', lambda config, **_: asked.append(config))
    t2i = str(CONFIGS / 't2i.py')
    flags = ['--config.batch_size=3', "--config.data.ratios=('1.000', '0.500')"]
    cli.main(['data', 'inspect', f'{t2i}:2b_256', *flags])
    assert asked[0].batch_size == 3 and asked[0].data.ratios == ('1.000', '0.500')
    for arguments, message in (
        (['data', 'speed', t2i, '--config.data.subst=all'], 'did you mean config.data.subset?'),
        (['data', 'speed', t2i, '--config.batch_size=x'], 'config.batch_size=x'),
        (['evaluate', 'demo', '--config.seed=3'], '--config.seed=3: evaluate demo takes no fields'),
        (['check', 'folder', '--config.seed=3'], '--config.seed=3: check takes no fields'),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and message in error and error.count('\n') == 1


def test_several_prompts_and_a_file(fake, tmp_path):
    file = tmp_path / 'prompts.txt'
    file.write_text('a bee\n\na tree — ünïcode\n')
    out = tmp_path / 'new' / 'p.png'
    cli.main(['generate', 'an ant', '--prompts-file', str(file), '--num', '2', '--out', str(out)])
    names = sorted(path.name for path in out.parent.iterdir())
    assert names == [f'p_{i:03}.png' for i in range(6)]
    assert Image.open(out.parent / 'p_005.png').text['prompt'] == 'a tree — ünïcode'
    assert Image.open(out.parent / 'p_005.png').text['index'] == '5'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['generate'], 'no prompt given'),
        (['generate', ' '], 'a prompt is empty'),
        (['generate', 'x', '--prompts-file', '/nowhere'], '--prompts-file /nowhere'),
        (['generate', 'x', '--out', 'x.gif'], 'does not end in .png or .jpg'),
        (['generate', 'x', '--cfg-layer', '-1,-2'], "'-1,-2' is not a layer; write one number"),
        (['generate', 'x', '--num', '0'], '--num is 0'),
        (['generate', 'x', '--max-batch', '0'], '--max-batch is 0'),
        (['generate', 'x', '--top-p', '2'], 'top_p is 2'),
        (['generate', 'x', '--cfg', 'abc'], "--cfg: 'abc' is neither a number nor a list"),
        (['generate', 'x', '--tau', '1,,2'], "--tau: '1,,2' is neither a number nor a list"),
        (['generate', 'x', '--top-k', 'abc'], "--top-k: invalid int value: 'abc'"),
        (['generate', 'x', '--seed', str(2**32)], "--seed: '4294967296' is not a seed"),
        (['generate', 'x', '--seed', '-1'], "--seed: '-1' is not a seed"),
        (['evaluate', 'demo', '--seed', 'x'], "--seed: 'x' is not a seed"),
        (['generate', 'x', '--height', '64'], 'only one of --height and --width'),
        (['generate', *TALL, '--height-over-width', '1'], 'not both'),
        (['generate', *TALL, '--aspect-ratio', '1:1'], 'not both'),
        (['generate', *TALL, '--budget', '1M'], 'not both'),
        (['generate', 'x', '--height-over-width', '1.0'], 'tokens of this model have 8'),
        (['generate', 'x', '--aspect-ratio', '1:1'], 'tokens of this model have 8'),
        (['generate', 'x', '--aspect-ratio', '1:1', '--budget', 'no'], "pixel budget 'no'"),
        (['generate', 'x', '--height-over-width', '1:2'], "unknown ratio '1:2'"),
        (
            ['generate', 'x', '--aspect-ratio', '1:1', '--height-over-width', '1'],
            '--aspect-ratio and --height-over-width are both given',
        ),
        (
            ['generate', 'x', '--aspect-ratio', '16x9'],
            "'16x9' is not an aspect ratio; wanted",
        ),
        (['compile', '--aspect-ratio', '0:1'], "'0:1' is not an aspect ratio; wanted"),
        (['bench', 'train', '--aspect-ratio', '-1:2'], "'-1:2' is not an aspect ratio; wanted"),
        (['generate', 'x', '--aspect-ratio=-1:2'], "'-1:2' is not an aspect ratio; wanted"),
        (['generate', 'x', '--aspect-ratio', '1:'], "'1:' is not an aspect ratio; wanted"),
        (['generate', 'x', '--aspect-ratio', 'nan:1'], "'nan:1' is not an aspect ratio; wanted"),
        (['generate', 'x', '--dtype', 'int8'], "invalid choice: 'int8'"),
        (['generate', 'x', '--decoder-precision', 'fp8'], '--decoder-precision: invalid choice'),
        (['generate', 'x', '--checkpoint', '/nowhere'], '/nowhere: no such folder'),
        (['evaluate', 'demo', '--checkpoint', '/nowhere'], '/nowhere: no such folder'),
        (['evaluate', 'tokenizer', '--checkpoint', '/nowhere'], '/nowhere: no such folder'),
        (['evaluate', 'tokenizer', '--checkpoint', ''], "--checkpoint: '' names nothing"),
        (['evaluate', 'tokenizer', '--data', ''], "--data: '' names nothing"),
        (['evaluate', 'tokenizer', '--subset', 'x'], "subset 'x' is unknown; choose one of"),
        (['evaluate', 'tokenizer', '--cfg', '9'], 'unrecognized arguments: --cfg 9'),
        (['evaluate', 'tokenizer', '--batches', '7'], 'unrecognized arguments: --batches 7'),
        (['evaluate', 'tokenizer', '--seed', '3'], 'unrecognized arguments: --seed 3'),
        (['evaluate', 'demo', '--data', 'x'], 'unrecognized arguments: --data x'),
        (['evaluate', 'demo', '--config', 'x'], 'unrecognized arguments: --config x'),
        (['evaluate', 'loss', '--config', 'x', '--tau', '1'], 'unrecognized arguments: --tau 1'),
        (['evaluate', 'loss'], 'the following arguments are required: --config'),
        (['evaluate'], 'the following arguments are required: WHAT'),
    ],
)
def test_errors_are_one_line_and_exit_two(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and error.count('\n') == 1


def test_an_image_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    image = Image.new('RGB', (4, 4))
    with pytest.raises(UserError, match='cannot write'):
        save_png(tmp_path / 'file' / 'x.png', image)


def test_a_jpeg_holds_the_settings_in_its_comment(tmp_path):
    image = Image.new('RGB', (16, 8), (250, 3, 120))
    save_image(tmp_path / 'x.JPG', image, {'prompt': 'a tree — ünïcode', 'seed': 3})
    with Image.open(tmp_path / 'x.JPG') as stored:
        assert stored.format == 'JPEG' and stored.size == (16, 8)
        assert json.loads(stored.info['comment']) == {'prompt': 'a tree — ünïcode', 'seed': '3'}
        assert np.abs(np.asarray(stored).astype(int) - np.asarray(image)).max() <= 3
    with pytest.raises(UserError, match='cannot write'):
        save_image(tmp_path / 'x.JPG' / 'y.jpg', image, {})


def test_images_are_numbered_in_either_format():
    assert [p.name for p in output_paths('a.jpeg', 2)] == ['a_000.jpeg', 'a_001.jpeg']


def test_help_needs_no_heavy_import():
    code = (
        'import sys\n'
        'from infinity_jax import cli\n'
        'cli.build_parser().format_help()\n'
        "heavy = ('jax', 'flax', 'numpy', 'orbax', 'ml_collections', 'absl')\n"
        'print([name for name in heavy if name in sys.modules])'
    )
    command = [sys.executable, '-c', code]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == '[]'


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    command = [sys.executable, '-m', 'infinity_jax.cli', 'data', 'inspect', 'configs/tokenizer.py']
    process = subprocess.Popen(
        [*command, '--out', str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert b'Traceback' not in process.stderr.read() and process.wait() == 1


def test_the_first_image_and_the_later_ones_are_timed_separately(monkeypatch):
    monkeypatch.setattr(generate_command, 'STARTED', time.perf_counter() - 10)
    one = generate_command.timing((2.0,), 1)
    assert one == 'time: 10.00 s to the first image, 2.00 s of it generating'
    several = generate_command.timing((2.0, 1.0, 1.0), 12)
    assert several.startswith('time: 8.00 s to the first image, 2.00 s')
    assert several.endswith('then 0.250 s per image')


def test_a_folder_as_out_gets_the_default_name(tmp_path):
    paths = generate_command.output_paths
    assert paths(f'{tmp_path}', 1) == [tmp_path / 'image.png']
    assert paths(f'{tmp_path}/new/', 1) == [tmp_path / 'new' / 'image.png']
    assert paths(f'{tmp_path}/', 2) == [tmp_path / 'image_000.png', tmp_path / 'image_001.png']
    with pytest.raises(UserError, match='does not end in .png'):
        paths(f'{tmp_path}/new', 1)


def test_a_full_disk_is_found_before_generation(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match='cannot write .*a.png: File too large; choose another'):
            check_writable(tmp_path / 'a.png')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []
    check_writable(tmp_path / 'a.png')
