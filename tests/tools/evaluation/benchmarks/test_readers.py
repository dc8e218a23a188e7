"""Prompt files that are not what they should be are one clear line each."""

import json

import pytest

from infinity_jax.errors import UserError
from infinity_jax.tools.evaluation.benchmarks.layout import read_rewritten
from infinity_jax.tools.evaluation.benchmarks.readers import READERS

NUM = {'geneval': 4, 'dpg': 4, 'imagereward': 10, 'hpsv2': 1, 'captions': 1}


def read(name, path, num=None):
    return READERS[name](path, NUM[name] if num is None else num, path.parent / 'out')


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('geneval', '', 'no line in it'),
        ('geneval', '{"tag": "x", "prompt": "a"}\n{"tag"', 'line 2 is not JSON'),
        ('geneval', '[1]', 'line 1 is a list; wanted a JSON object'),
        ('geneval', '{"tag": "x"}', 'prompt 1 has no prompt, but tag'),
        ('geneval', '{"tag": "x", "prompt": " "}', "prompt is ' '; wanted text"),
        ('geneval', '{"tag": "x", "prompt": 3}', 'prompt is a int; wanted text'),
        ('geneval', '{"prompt": "a"}', 'has no tag; wanted the lines of'),
        ('dpg', 'id,prompt\n1,a\n', 'no columns item_id and text'),
        ('dpg', 'item_id,text\na.b,x\n', 'has a dot in its name'),
        ('dpg', 'item_id,text\n../a,x\n', 'has a dot in its name'),
        ('imagereward', '{"id": "1"', 'not JSON in line 1'),
        ('imagereward', '{}', 'wanted a JSON list of objects with id and prompt'),
        ('imagereward', '["a"]', 'entry 1 is a str; wanted an object'),
        ('imagereward', '[{"prompt": "a"}]', 'id is None; wanted the name of a file'),
        ('imagereward', '[{"id": "a/b", "prompt": "a"}]', "'a/b'; it becomes a file"),
        ('imagereward', '[{"id": "..", "prompt": "a"}]', "id is '..'; wanted the name"),
        (
            'imagereward',
            '[{"id": "1", "prompt": "a"}, {"id": "1", "prompt": "b"}]',
            "entry 2: id is '1' for a second time",
        ),
        ('hpsv2', '[]', 'wanted a JSON object from styles to prompts'),
        ('hpsv2', '{"anime": []}', "style 'anime' is not a list of prompts"),
        ('captions', '{"image": "a.png"}', 'has no text or prompt or caption or long_caption'),
        ('captions', '{"text": "a", "image_path": "no.png"}', 'no.png: no such image'),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, name, content, message):
    path = tmp_path / 'prompts'
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read(name, path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_absent_files_and_wrong_encodings(tmp_path):
    for name in NUM:
        with pytest.raises(UserError, match='No such file or directory; name the prompt file'):
            read(name, tmp_path / 'nowhere')
    (tmp_path / 'latin').write_bytes(b'{"tag": "x", "prompt": "caf\xe9"}')
    with pytest.raises(UserError, match='byte 27 is not UTF-8; save the file as UTF-8'):
        read('geneval', tmp_path / 'latin')
    with pytest.raises(UserError, match='a folder; wanted a file'):
        read('geneval', tmp_path)
    with pytest.raises(UserError, match=r'no \*.txt in it'):
        read('dpg', tmp_path)
    with pytest.raises(UserError, match='no anime, concept-art, paintings, photo'):
        read('hpsv2', tmp_path)


@pytest.mark.parametrize('name, num', [('dpg', 1), ('hpsv2', 2), ('captions', 4)])
def test_numbers_of_images_that_a_judge_does_not_take(tmp_path, name, num):
    with pytest.raises(UserError, match=f'--num is {num}; '):
        read(name, tmp_path, num)


def test_the_table_of_dpg_has_a_row_per_question(tmp_path):
    path = tmp_path / 'dpg_bench.csv'
    path.write_text('item_id,text,tuple\nb,"one, two",q\nb,"one, two",r\na,three,s\n')
    items = read('dpg', path).items
    assert [(item.prompt, item.files) for item in items] == [
        ('one, two', ('images/b.png',)),
        ('three', ('images/a.png',)),
    ]


def test_a_byte_order_mark_and_blank_lines_are_no_part_of_a_line(tmp_path):
    line = json.dumps({'tag': 'x', 'prompt': 'a café'}, ensure_ascii=False)
    (tmp_path / 'p').write_bytes(b'\xef\xbb\xbf' + f'{line}\r\n\r\n{line}\r\n'.encode())
    items = read('geneval', tmp_path / 'p').items
    assert [item.texts for item in items] == [
        ((f'0000{i}/metadata.jsonl', line + '\n'),) for i in range(2)
    ]


def test_a_digest_depends_on_prompts_and_number_of_images(tmp_path):
    (tmp_path / 'a').write_text('{"text": "one"}')
    (tmp_path / 'b').write_text('{"text": "two"}')
    (tmp_path / 'c').write_text('{"caption": "one"}')
    a, b, c = (read('captions', tmp_path / name).digest for name in 'abc')
    assert a == c != b


@pytest.mark.parametrize(
    'content, message',
    [
        ('{', 'wanted a JSON object'),
        ('[]', 'a list; wanted a JSON object from prompts'),
        ('{"a": "b"}', "lacks 1 of 2 prompts, the first: 'c'"),
        ('{"a": "b", "c": ""}', "'c' is ''; wanted text"),
    ],
)
def test_rewritten_prompts_must_be_complete(tmp_path, content, message):
    path = tmp_path / 'rewritten.json'
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_rewritten(path, ['a', 'c', 'a'])
