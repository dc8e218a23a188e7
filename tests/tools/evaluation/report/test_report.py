"""Reports of made-up files in the formats of the judges; damaged ones are one line each."""

import json

import numpy as np
import pytest

from infinity_jax.cli import main
from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.report.find import find_results
from infinity_jax.tools.evaluation.report.report import figures, table
from infinity_jax.tools.evaluation.report.results import read_geneval

TASKS = {'single_object': 80, 'two_object': 99, 'counting': 80, 'colors': 94}
TASKS |= {'position': 100, 'color_attr': 100}


def geneval_lines(share=0.75):
    """One line per image, as pandas writes them; `share` of each prompt's four are right."""
    lines = []
    for tag, count in TASKS.items():
        for i in range(count):
            for j in range(4):
                lines.append(
                    {
                        'filename': f'out/{len(lines) // 4:05}/samples/{j:04}.png',
                        'tag': tag,
                        'prompt': f'{tag} {i}',
                        'correct': j < 4 * share,
                        'reason': '' if j < 4 * share else 'expected x>=1, found 0',
                        'metadata': json.dumps({'tag': tag, 'prompt': f'{tag} {i}'}),
                        'details': '{}',
                    }
                )
    return lines


def write(path, lines):
    path.write_text('\n'.join(map(json.dumps, lines)) + '\n')


DPG = """\
out/images/a.png, 1.0, 0.5, 1.0, 0.5, 0.75
out/images/b, c.png, 1.0, 1.0, 1.0, 1.0, 1.0
Model: images
L1 category scores:
\tentity: 90.5
\trelation: 80.25
L2 category scores:
\tentity - whole: 91.0
Image path: out/images
Save results to: out/dpg_results.txt
DPG-Bench score: 87.5
"""
HPS = """\
-----------benchmark score ----------------
2b anime           31.00 \t 0.2775
2b concept-art     30.00 \t 0.2606
2b paintings       29.00 \t 0.5296
2b photo           28.00 \t 0.5209
2b Average         29.50
"""


def only(folder):
    (results,), problems = find_results(folder)
    assert not problems
    return results


def rows(results):
    return {row.name: row for row in results.rows}


def test_geneval_is_the_mean_of_its_tasks(tmp_path):
    lines = [line for line in geneval_lines() if line['tag'] != 'counting']
    lines += [{**line, 'correct': False} for line in geneval_lines() if line['tag'] == 'counting']
    write(tmp_path / 'results.jsonl', lines)
    found = rows(only(tmp_path))
    assert [*found] == [*(t for t in TASKS if t != 'counting'), 'counting', 'overall']
    assert found['colors'].estimate.value == 0.75 and found['colors'].images == 376
    assert found['counting'].estimate.value == 0
    assert found['overall'].estimate.value == pytest.approx(0.75 * 5 / 6)
    assert found['overall'].images == 2212


def test_a_table_has_intervals_and_references(tmp_path):
    write(tmp_path / 'results.jsonl', geneval_lines())
    text = table(only(tmp_path), {'model': {'name': '2b'}, 'sampling': {'guidance': [4.0]}})
    assert 'results.jsonl (2b, guidance 4.0, prompts as published)' in text
    (line,) = [line for line in text.splitlines() if line.startswith('position')]
    assert line.split() == ['position', '0.750', '0.705', 'to', '0.790', '400', '0.417', '0.268']
    assert (
        '[4] a user, 2B, rewritten prompts: github.com/FoundationVision/Infinity/issues/42' in text
    )
    assert 'not comparable' not in text


def test_a_judge_that_saw_fewer_images_is_noted(tmp_path):
    write(tmp_path / 'results.jsonl', geneval_lines()[:-2])
    assert '2210 of the 2212 images of the benchmark were judged' in table(only(tmp_path))


def test_imagereward_with_and_without_scores_per_image(tmp_path):
    averages = {'prompts': 100, 'images': 1000, 'average_image_reward': 0.93}
    (tmp_path / 'image_reward_res.json').write_text(json.dumps(averages))
    results = only(tmp_path)
    assert rows(results)['overall'].estimate == (0.93, None, None) and results.images == 1000
    assert 'unknown' in table(results) and 'no interval' in table(results)
    (tmp_path / 'image_reward_res.json').unlink()
    means = np.linspace(-1, 1, 100)
    entries = [{'id': str(i), 'rewards': [m - 0.5, m + 0.5]} for i, m in enumerate(means)]
    (tmp_path / 'ImageReward-v1.0-result.json').write_text(json.dumps(entries))
    value, low, high = rows(only(tmp_path))['overall'].estimate
    assert (value, low, high) == pytest.approx((0, -0.1149, 0.1149), abs=1e-3)


@pytest.mark.parametrize('factor', [1, 0.01], ids=['percent', 'shares'])
def test_hpsv2_as_printed(tmp_path, factor):
    text = HPS
    if factor != 1:
        for number in ('31.00', '30.00', '29.00', '28.00', '0.2775', '0.2606', '0.5296', '0.5209'):
            text = text.replace(number, f'{float(number) * factor:.6f}')
    (tmp_path / 'hpsv2.txt').write_text(text)
    found = rows(only(tmp_path))
    assert [*found] == ['anime', 'concept-art', 'paintings', 'photo', 'overall']
    assert found['overall'].estimate.value == pytest.approx(29.5)
    value, low, high = found['anime'].estimate
    assert value == pytest.approx(31)
    half = 2.262 * 0.2775 / 3
    assert (low, high) == pytest.approx((31 - half, 31 + half))


def test_dpg_has_categories_and_an_interval_from_its_images(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'dpg-bench_20261129-010203_results.txt').write_text(DPG)
    (tmp_path / 'images' / 'dpg-bench_20261129-010203_results_detail.txt').write_text('x, y\n')
    found = rows(only(tmp_path))
    assert {name: row.estimate.value for name, row in found.items()} == {
        'entity': 90.5, 'relation': 80.25, 'overall': 87.5,
    }  # fmt: skip
    assert found['overall'].images == 2 and found['overall'].estimate.high == pytest.approx(
        112, 1e-4
    )


def test_the_command_writes_text_json_and_a_plot(tmp_path, capsys):
    write(tmp_path / 'results.jsonl', geneval_lines())
    (tmp_path / 'hpsv2.txt').write_text(HPS)
    (tmp_path / 'notes.txt').write_text('mine')
    run = {'benchmark': 'geneval', 'model': {'name': '2b'}, 'sampling': {'temperature': [1.0]}}
    (tmp_path / 'run.json').write_text(json.dumps(run))
    main(['evaluate', 'report', str(tmp_path)])
    output = capsys.readouterr().out
    assert 'results.jsonl (2b, temperature 1.0, prompts as published)\n' in output
    assert 'hpsv2.txt\n' in output  # of other images: the settings are not known
    text = (tmp_path / 'report.txt').read_text()
    assert text in output and 'hpsv2: hpsv2.txt' in text
    content = json.loads((tmp_path / 'report.json').read_text())
    assert content == [figures(results) for results in find_results(tmp_path)[0]]
    assert content[1]['rows'][-1]['value'] == 0.75
    assert (tmp_path / 'report.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('r.jsonl', '', 'empty; run the judge again'),
        ('r.jsonl', '{"tag": "a", "correct": true}\n{"tag"', 'line 2 of 2 is cut off'),
        ('r.jsonl', '{"tag"\n{"tag": "a", "correct": true}', 'line 1 of 2 is not JSON'),
        ('r.jsonl', '{"tag": "a", "correct": "yes"}', 'line 1 has no tag and correct'),
        ('r.jsonl', '[]', 'line 1 is not a JSON object'),
        ('image_reward_res.json', '{"average_image_', 'cut off, or not JSON'),
        (
            'res.json',
            '{"average_image_reward": null}',
            'average_image_reward is None; wanted a',
        ),
        ('res.json', '[{"rewards": [1, "x"]}]', "entry 1: rewards is 'x'; wanted a number"),
        ('hps.txt', '2b photo    nan \t nan\n', "photo is 'nan'; wanted a number"),
        ('dpg_results.txt', DPG[:44], 'no line "DPG-Bench score" after 1 images; the judge was'),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match='2'):
        main(['evaluate', 'report', str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and name in line


def test_a_damaged_file_does_not_hide_the_others(tmp_path, capsys):
    write(tmp_path / 'results.jsonl', geneval_lines())
    (tmp_path / 'dpg_results.txt').write_text('')
    with pytest.raises(SystemExit, match='2'):
        main(['evaluate', 'report', str(tmp_path)])
    captured = capsys.readouterr()
    assert 'overall' in captured.out and 'dpg_results.txt: no line' in captured.err


def test_a_folder_without_results(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        find_results(tmp_path / 'nowhere')
    assert find_results(tmp_path) == ([], [])
    with pytest.raises(UserError, match='cut off'):
        (tmp_path / 'r.jsonl').write_text('{')
        read_geneval(tmp_path / 'r.jsonl')


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('result.json', [{'rewards': [1.0]}, {'rewards': []}], 'entry 2: rewards is None; wanted'),
        ('result.json', [{'rewards': [1.0]}, {'prompt': 'a'}], 'entry 2: rewards is None; wanted'),
        ('image_reward_res.json', {}, 'has no average_image_reward; run the judge again'),
        ('hps.txt', 'Traceback: ...', 'has no line of a style and its score; run the judge again'),
        ('hps.txt', HPS + HPS, 'anime appears twice, from two runs'),
    ],
)
def test_half_and_doubled_files_are_named_next_to_whole_ones(tmp_path, name, content, message):
    write(tmp_path / 'results.jsonl', geneval_lines())
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    results, problems = find_results(tmp_path)
    assert [each.benchmark for each in results] == ['geneval']
    assert len(problems) == 1 and name in problems[0] and message in problems[0]


def test_an_image_that_is_judged_twice_is_named(tmp_path):
    write(tmp_path / 'results.jsonl', [*geneval_lines(), geneval_lines()[0]])
    with pytest.raises(UserError, match=r'line 2213 judges out/00000/samples/0000.png a second'):
        read_geneval(tmp_path / 'results.jsonl')


def test_prompts_next_to_the_results_are_none(tmp_path):
    write(tmp_path / 'results.jsonl', geneval_lines())
    write(tmp_path / 'evaluation_metadata.jsonl', [{'tag': 'a', 'include': [], 'prompt': 'b'}])
    results, problems = find_results(tmp_path)
    assert len(results) == 1 and not problems and not results[0].notes


def test_an_overall_score_names_the_tasks_that_are_absent(tmp_path):
    lines = [line for line in geneval_lines() if line['tag'] in ('counting', 'colors')]
    write(tmp_path / 'results.jsonl', lines)
    absent = 'single_object, two_object, position, color_attr'
    assert read_geneval(tmp_path / 'results.jsonl').notes == (
        f'overall is without the tasks {absent}',
    )
