"""scripts/measure_gpu.sh: its parts, and parts that fail or take too long."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY
from PIL import Image

from infinity_jax.cli import build_parser

SCRIPT = REPOSITORY / 'scripts' / 'measure_gpu.py'


@pytest.fixture(scope='module')
def measure():
    spec = importlib.util.spec_from_file_location('measure_gpu', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules['measure_gpu'] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('small', [False, True])
def test_every_command_is_one_that_there_is(measure, small):
    found = measure.parts(small, measure.REFERENCES)
    names = [part.name for part in found]
    assert {'cudnn', 'parity', 'demo', 'train_2b_512', 'lora_2b_1024'} <= set(names)
    assert {f'generate_{model}_{n}' for model in ('2b', '8b') for n in (1, 8)} <= set(names)
    assert sum(part.seconds for part in found) <= measure.LIMIT <= 600
    for part in found:
        if part.command[:3] == measure.CLI:
            build_parser().parse_args(part.command[3:])
        else:
            assert part.command[part.command.index('--part') + 1] in measure.OWN
        assert '{out}' in part.command


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_next(measure, tmp_path, monkeypatch):
    writes = 'import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])'
    figures = json.dumps({'stages': {'train': {'seconds': 1.5, 'fraction_of_peak': 0.25}}})
    commands = {
        'fails': ('-c', 'print(7); raise SystemExit(3)'),
        'hangs': ('-c', 'import time; time.sleep(60)'),
        'works': ('-c', writes, '{out}', figures),
    }
    listed = [measure.Part(name, 3, (sys.executable, *c)) for name, c in commands.items()]
    late = measure.Part('late', 0, (sys.executable, '-c', ''))
    monkeypatch.setattr(measure, 'parts', lambda *_: [*listed, late])
    monkeypatch.setattr(measure, 'machine', lambda: 'a machine')
    monkeypatch.setattr(measure, 'LEAST', 0.5)
    monkeypatch.setattr(measure, 'LIMIT', 9)
    measure.main(['--out', str(tmp_path), '--slower', '0.9'])
    report = json.loads((tmp_path / 'measured.json').read_text())['parts']
    assert report['fails']['status'] == 'failed with 3' and report['fails']['last_lines'] == ['7']
    assert report['hangs']['status'].startswith('stopped after')
    assert report['works']['status'] == 'ok' and 'figures' in report['works']
    rows = (tmp_path / 'measured.txt').read_text().splitlines()
    assert rows[0].startswith('a machine; ') and len(rows) == 4 + 4
    assert '| train 1.500 | 25.0% |' in rows[6]


def test_images_of_an_earlier_run_are_not_compared(measure, tmp_path, monkeypatch):
    def generate(command, **_):
        folder = pathlib.Path(command[-1])
        for i in range(int(command[command.index('--num') + 1])):
            Image.new('RGB', (2, 2), (i, 0, 0)).save(folder / f'image_{i:03}.png')

    monkeypatch.setattr(measure.subprocess, 'run', generate)
    for count in (4, 2):
        out = tmp_path / 'demo.json'
        measure.main(['--part', 'demo', '--count', str(count), '--out', str(out)])
        figures = json.loads(out.read_text())
        assert figures['images'] == figures['equal_images'] == count


def test_the_shell_script_runs_it(tmp_path):
    script = str(SCRIPT.with_suffix('.sh'))
    ran = subprocess.run(
        [script, '--dry-run', '--references', 'elsewhere'],
        capture_output=True,
        text=True,
        env={'PYTHON': sys.executable, 'PATH': '/usr/bin:/bin'},
    )
    assert ran.returncode == 0, ran.stderr
    assert 'bench generate --preset 8b --batch 8' in ran.stdout
    assert '--part parity --references elsewhere' in ran.stdout
