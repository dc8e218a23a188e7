"""Texts of errors in one line."""

import pickle

import pytest

from infinity_jax.errors import UserError, first_line, in_one_line


@pytest.mark.parametrize(
    ('error', 'first', 'joined'),
    [
        (ValueError('\n  disk full \nwhile writing'), 'disk full ', 'disk full while writing'),
        (KeyError(), 'KeyError', 'KeyError'),
        (OSError('  '), 'OSError', 'OSError'),
        ('refused\nby the compiler', 'refused', 'refused by the compiler'),
    ],
)
def test_an_error_has_one_line(error, first, joined):
    assert first_line(error) == first and in_one_line(error) == joined
    assert first_line(error, 3) == first[:3] and in_one_line(error, 3) == joined[:3]


def test_an_error_of_the_user_is_one_line():
    text = str(UserError('file a\nb: is \x1b[31m\0\u2028x; wanted y\n'))
    assert text == 'file a\\nb: is \\x1b[31m\\x00\\u2028x; wanted y' and len(text.splitlines()) == 1
    long = str(UserError(f'{"x" * 9000}; do this'))
    assert len(long) < 3100 and long.startswith('xxx') and long.endswith('; do this')
    copied = pickle.loads(pickle.dumps(UserError('a\nb')))  # from a worker process
    assert isinstance(copied, UserError) and str(copied) == 'a\\nb'
