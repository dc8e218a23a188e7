import pytest

from infinity_jax.errors import UserError
from infinity_jax.tools.commands.prompts import read_negative, read_prompts


@pytest.mark.parametrize(('content', 'wanted'), [
    (b'\xef\xbb\xbfa red apple\na blue car\n', ['a red apple', 'a blue car']),
    (b'a\r\nb\rc\nd', ['a', 'b', 'c', 'd']),
    (b'\n \n\t\na\n\n', ['a']),
    ('a\u2028b\x85c\x0cd\u2029e\x1cf\n'.encode(), ['a\u2028b\x85c\x0cd\u2029e\x1cf']),
    ('a\n\u200b\n\ufeff\n\u200d\u2060\nb'.encode(), ['a', 'b']),
    ('一只红苹果\n🍎\n'.encode(), ['一只红苹果', '🍎']),
])  # fmt: skip
def test_lines_of_a_file(tmp_path, content, wanted):
    file = tmp_path / 'prompts.txt'
    file.write_bytes(content)
    assert read_prompts(['first'], str(file)) == ['first', *wanted]


@pytest.mark.parametrize(('content', 'message'), [
    ('a red apple'.encode('utf-16'), 'UTF-16; save it as UTF-8'),
    ('a\nb\na café\n'.encode('latin-1'), 'line 3 is not UTF-8 .byte 0xe9.; save the file as UTF-8'),
    (b'a\na red\0apple\n', r"line 2 holds a zero byte: 'a red.x00apple'; remove it"),
    (b'\n\n', 'no prompt given'),
])  # fmt: skip
def test_a_file_that_is_not_a_list_of_prompts(tmp_path, content, message):
    file = tmp_path / 'prompts.txt'
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts([], str(file))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('prompt', 'message'), [
    ('a caf\udce9', 'prompt 2 of 2 is not UTF-8'),
    ('a\0b', 'prompt 2 of 2 holds a zero byte'),
    (' \u200b', 'a prompt is empty: number 2 of 2'),
    ('', 'a prompt is empty: number 2 of 2'),
])  # fmt: skip
def test_prompts_that_cannot_be_used(prompt, message):
    with pytest.raises(UserError, match=message):
        read_prompts(['a cat', prompt])


def test_a_blank_negative_prompt_is_none():
    assert [read_negative(text) for text in (None, '', ' \u200b', 'red')] == [None] * 3 + ['red']
    with pytest.raises(UserError, match='--negative is not UTF-8'):
        read_negative('caf\udce9')
