"""Texts of errors in one line."""

import pytest

from infinity_jax.errors import first_line, in_one_line


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
