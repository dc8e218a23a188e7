import json

import numpy as np
import pytest
from PIL import Image

from infinity_jax import cli
from infinity_jax.config import QuantizationConfig
from infinity_jax.errors import UserError
from infinity_jax.inference import pipeline as pipeline_module
from infinity_jax.inference.sampling import SamplingConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tools.commands.image_jobs import (
    generate_jobs,
    jobs_of_grid,
    jobs_of_lines,
    parse_grid,
)

DEFAULT = SamplingConfig()


class FakePipeline:
    """Flat images of the colour (10 · seed + index, 10 · guidance, length of the prompt)."""

    schedule = ScaleSchedule.free(((1, 1), (2, 2)))
    image_size = (16, 16)
    quantization = QuantizationConfig()
    dtype, text_dtype = 'float32', 'float32'
    decoder_precision = 'float32'
    runs = 0

    @classmethod
    def from_pretrained(cls, folder, **options):
        return cls()

    def run(self, job):
        self.runs += 1
        for prompt, (seed, index) in zip(job.prompts, job.seeds, strict=True):
            colour = [10 * seed + index, round(10 * job.sampling.guidance[0]), len(prompt)]
            yield np.broadcast_to(np.array(colour, np.uint8), (1, 16, 16, 3))


def lines_file(tmp_path, *lines):
    file = tmp_path / 'prompts.jsonl'
    file.write_text('\n'.join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return str(file)


def test_a_line_has_settings_of_its_own(tmp_path):
    file = lines_file(
        tmp_path,
        {'prompt': 'a bee'},
        '',
        {'prompt': 'an ant', 'seed': 5, 'num': 2, 'guidance': 4, 'temperature': [0.5, 1.0]},
        {'prompt': 'a cat', 'negative': 'green', 'top_k': 1},
    )
    jobs = jobs_of_lines(file, 1, 3, 'red', DEFAULT)
    assert [(j.prompt, j.negative, j.seed, j.index) for j in jobs] == [
        ('a bee', 'red', 3, 0),
        ('an ant', 'red', 5, 0),
        ('an ant', 'red', 5, 1),
        ('a cat', 'green', 3, 3),
    ]
    assert jobs[1].sampling == SamplingConfig(guidance=4, temperature=(0.5, 1.0))
    assert jobs[0].sampling == DEFAULT and jobs[3].sampling.top_k == 1


def test_equal_settings_share_batches_and_the_order_is_that_of_the_lines(tmp_path):
    file = lines_file(
        tmp_path,
        {'prompt': 'x', 'guidance': 2},
        {'prompt': 'xx', 'guidance': 4},
        {'prompt': 'xxx', 'guidance': 2},
    )
    pipeline = FakePipeline()
    images = generate_jobs(pipeline, jobs_of_lines(file, 1, 1, None, DEFAULT))
    assert [image[0, 0].tolist() for image in images] == [[10, 20, 1], [11, 40, 2], [12, 20, 3]]
    assert pipeline.runs == 2


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('a red apple', 'line 2: not JSON .* wanted an object'),
        ('["a"]', 'line 2: .* has no prompt'),
        ('{"seed": 1}', 'line 2: .* has no prompt'),
        ('{"prompt": " "}', 'line 2: a prompt is empty'),
        ('{"prompt": "x", "cfg": 1}', "line 2: field 'cfg' is unknown; known: prompt, negative"),
        ('{"prompt": "x", "num": 0}', 'line 2: num is 0; wanted 1 or more'),
        ('{"prompt": "x", "seed": "1"}', "line 2: seed is '1'; wanted a whole number"),
        ('{"prompt": "x", "num": true}', 'line 2: num is True; wanted a whole number'),
        ('{"prompt": "x", "top_p": 2}', 'line 2: top_p is 2'),
        ('{"prompt": "x", "guidance": "high"}', 'line 2: '),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    file = lines_file(tmp_path, {'prompt': 'a bee'}, line)
    with pytest.raises(UserError, match=message) as caught:
        jobs_of_lines(file, 1, 0, None, DEFAULT)
    assert '\n' not in str(caught.value)


def test_a_grid_has_one_image_per_combination():
    grid = parse_grid(['guidance=1,3,5', 'temperature=0.3,0.7'])
    jobs, captions = jobs_of_grid(grid, ['a bee'], 4, None, DEFAULT)
    assert [(j.sampling.guidance, j.sampling.temperature) for j in jobs] == [
        ((g,), (t,)) for t in (0.3, 0.7) for g in (1.0, 3.0, 5.0)
    ]
    assert captions[1] == 'guidance 3, temperature 0.3'
    assert {(job.seed, job.index) for job in jobs} == {(4, 0)}
    jobs, captions = jobs_of_grid(parse_grid(['seed=1,2']), ['a bee', 'an ant'], 4, None, DEFAULT)
    assert [(job.seed, job.index) for job in jobs] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert captions[2] == 'seed 1: an ant'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('cfg=1', "'cfg' is unknown; known: guidance, temperature"),
        ('guidance', 'wanted numbers with commas'),
        ('top_k=1.5', 'wanted numbers with commas'),
        ('seed=' + '1,' * 400 + '1', '401 cells; wanted 400 at most'),
    ],
)
def test_what_is_no_grid(text, message):
    with pytest.raises(UserError, match=message):
        parse_grid([text])


def test_the_command_writes_a_sheet_or_an_image_per_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline_module, 'InfinityPipeline', FakePipeline)
    out = str(tmp_path / 'x.png')
    cli.main(['generate', 'a bee', '--grid', 'guidance=1,3', 'seed=1,2', '--out', out])
    with Image.open(out) as sheet:
        assert sheet.width > sheet.height * 0.8 and sheet.text['grid'] == 'guidance=1,3 seed=1,2'
        assert sheet.getpixel((100, 100)) == (10, 10, 5)
    file = lines_file(tmp_path, {'prompt': 'a', 'seed': 2}, {'prompt': 'b', 'guidance': 5})
    cli.main(['generate', '--prompts-file', file, '--out', out])
    with Image.open(tmp_path / 'x_001.png') as image:
        assert image.text['prompt'] == 'b' and image.text['guidance'] == '5'
        assert (image.text['seed'], image.text['index']) == ('0', '1')
    for arguments in (['a', '--prompts-file', file], ['a', '--num', '2', '--grid', 'seed=1']):
        with pytest.raises(SystemExit):
            cli.main(['generate', *arguments])
        assert capsys.readouterr().err.count('\n') == 1
