import numpy as np
import pytest
from PIL import Image

from infinity_jax import cli
from infinity_jax.config import QuantizationConfig
from infinity_jax.inference import pipeline as pipeline_module
from infinity_jax.inference.edit import EditedImages


class FakePipeline:
    """Returns the sources, and records the edits."""

    asked = {}
    quantization = QuantizationConfig(cache='int8')  # as memory allows, not as asked
    decoder_precision = 'tf32'

    @classmethod
    def from_pretrained(cls, folder, **options):
        cls.asked = {'folder': folder, **options}
        return cls()

    def edit(self, edit, *, num, seed, negative, sampling):
        type(self).asked |= {'edit': edit, 'negative': negative, 'sampling': sampling}
        seeds = tuple((seed, i) for i in range(num))
        return EditedImages((edit.read().pixels_YX3,) * num, (edit.prompt,) * num, seeds)


@pytest.fixture
def image(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline_module, 'InfinityPipeline', FakePipeline)
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (12, 8), 'red').save('in.png')
    mask = Image.new('L', (12, 8))
    mask.paste(255, (0, 0, 6, 8))
    mask.save('mask.png')
    return 'in.png'


def test_a_mask_and_its_settings(image, capsys):
    flags = ['--mask', 'mask.png', '--strength', '0.7', '--feather', '2', '--seed', '3']
    cli.main(['edit', image, 'a bee', *flags, '--num', '2', '--cfg', '2', '--out', 'out/x.png'])
    edit = FakePipeline.asked['edit']
    assert (edit.prompt, edit.strength, edit.feather, edit.composite) == ('a bee', 0.7, 2, True)
    assert edit.mask[:, :6].all() and not edit.mask[:, 6:].any()
    assert FakePipeline.asked['sampling'].guidance == (2,)
    assert capsys.readouterr().out.split() == ['out/x_000.png', 'out/x_001.png']
    with Image.open('out/x_001.png') as result:
        assert result.size == (12, 8) and result.getpixel((0, 0)) == (255, 0, 0)
        assert (result.text['image'], result.text['mask']) == ('in.png', 'mask.png')
        assert (result.text['seed'], result.text['index']) == ('3', '1')
        assert (result.text['weights'], result.text['cache']) == ('full', 'int8')
        assert result.text['decoder'] == 'tf32'


def test_words_and_a_plain_variation(image):
    cli.main(['edit', image, 'a bee', '--source-prompt', 'an ant', '--tolerance', '1'])
    edit = FakePipeline.asked['edit']
    assert (edit.source_prompt, edit.tolerance, edit.mask) == ('an ant', 1.0, None)
    request = FakePipeline.asked['request']
    assert (request.prompts, request.negative, request.edited) == (('a bee',), 'an ant', (8, 12))
    cli.main(['edit', image, 'a bee', '--negative', 'an ant', '--no-composite'])
    assert FakePipeline.asked['edit'].strength is None and not FakePipeline.asked['edit'].composite
    assert FakePipeline.asked['negative'] == 'an ant'


@pytest.mark.parametrize(
    ('flags', 'size', 'corner'),
    [
        (['--canvas', '20x10'], (20, 10), (4, 1)),
        (['--canvas', '20x10', '--at', '8,2'], (20, 10), (8, 2)),
        (['--canvas', '1:1'], (12, 12), (0, 2)),
        (['--canvas', '3:1'], (24, 8), (6, 0)),
    ],
)
def test_a_larger_canvas(image, flags, size, corner):
    cli.main(['edit', image, 'a bee', *flags])
    edit = FakePipeline.asked['edit']
    assert edit.image.shape == (*size[::-1], 3)
    column, row = corner
    outside = np.ones(size[::-1], bool)
    outside[row : row + 8, column : column + 12] = False
    assert (edit.mask == outside).all()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.png', 'x'], 'nowhere.png: No such file'),
        (['in.png', ' '], 'a prompt is empty'),
        (['in.png', 'x', '--mask', 'in.png', '--canvas', '20x10'], 'both given'),
        (['in.png', 'x', '--at', '0,0'], '--at is given without --canvas'),
        (['in.png', 'x', '--canvas', '10x10'], 'does not fit a canvas of 10 x 10'),
        (['in.png', 'x', '--canvas', 'wide'], "'wide' is neither a size such as 640x480"),
        (['in.png', 'x', '--at', '1x2'], "'1x2' is not a place"),
        (['in.png', 'x', '--strength', '2'], 'strength is 2.0; wanted 0'),
        (['in.png', 'x', '--source-prompt', 'y', '--negative', 'z'], 'give one of them'),
        (['in.png', 'x', '--source-prompt', 'y', '--cfg', '1'], 'guidance other than 1'),
        (['in.png', 'x', '--num', '0'], '--num is 0'),
        (['in.png', 'x', '--out', 'x.gif'], 'does not end in .png or .jpg'),
    ],
)
def test_what_is_wrong_is_one_line(image, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(['edit', *arguments])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.count('\n') == 1
