"""The console command: arguments, files, metadata and one-line errors; no model is run."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from infinity_jax import cli
from infinity_jax import pipeline as pipeline_module
from infinity_jax.config import UserError
from infinity_jax.pictures import save_png
from infinity_jax.pipeline import Pictures


class FakePipeline:
    """Draws flat grey and remembers what it was asked."""

    asked = {}

    @classmethod
    def from_pretrained(cls, folder):
        cls.asked = {'folder': folder}
        return cls()

    def __call__(self, prompts, *, num, seed, negative, sampling):
        type(self).asked |= {'negative': negative, 'sampling': sampling}
        prompts = tuple(prompt for prompt in prompts for _ in range(num))
        pixels = np.full((len(prompts), 16, 16, 3), 128, np.uint8)
        return Pictures(pixels, prompts, tuple((seed, i) for i in range(len(prompts))))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(pipeline_module, 'InfinityPipeline', FakePipeline)
    return FakePipeline


def test_one_picture_with_its_settings_inside(fake, tmp_path):
    out = tmp_path / 'apple.png'
    arguments = ['--seed', '3', '--cfg', '1,2,3,4', '--tau', '0.5', '--top-k', '1', '--out']
    cli.main(['generate', 'a red apple', *arguments, str(out), '--negative', 'a pear'])
    with Image.open(out) as image:
        assert image.size == (16, 16)
        assert image.text['prompt'] == 'a red apple' and image.text['seed'] == '3'
        assert image.text['guidance'] == '1.0,2.0,3.0,4.0' and image.text['negative'] == 'a pear'
    assert fake.asked['sampling'].temperature == (0.5,) and fake.asked['sampling'].top_k == 1
    assert fake.asked['folder'] == pipeline_module.DEMO_FOLDER


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
        (['generate', 'x', '--out', 'x.jpg'], 'does not end in .png'),
        (['generate', 'x', '--num', '0'], '--num is 0'),
        (['generate', 'x', '--top-p', '2'], 'top_p is 2'),
        (['generate', 'x', '--checkpoint', '/nowhere'], '/nowhere: no config.json'),
        (['evaluate', 'demo', '--checkpoint', '/nowhere'], '/nowhere: no config.json'),
        (['evaluate', 'tokenizer', '--checkpoint', '/nowhere'], '/nowhere: no config.json'),
    ],
)
def test_errors_are_one_line_and_exit_two(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error and error.count('\n') == 1


def test_a_picture_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    image = Image.new('RGB', (4, 4))
    with pytest.raises(UserError, match='cannot write'):
        save_png(tmp_path / 'file' / 'x.png', image)


def test_help_needs_no_heavy_import():
    code = (
        'import sys\n'
        'from infinity_jax import cli\n'
        'cli.build_parser().format_help()\n'
        "print([m for m in ('jax', 'flax', 'numpy', 'orbax') if m in sys.modules])"
    )
    command = [sys.executable, '-c', code]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == '[]'
