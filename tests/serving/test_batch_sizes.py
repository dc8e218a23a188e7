import pytest

from infinity_jax.errors import UserError
from infinity_jax.serving.batch_sizes import BatchSizes


def test_only_the_smallest_size_is_used_unseen():
    sizes = BatchSizes((2, 4, 8))
    assert sizes.fitting('p', 1) == sizes.fitting('p', 7) == 2
    assert (sizes.untried('p', 2), sizes.untried('p', 3)) == (None, 4)


def test_sizes_that_compare_equal_are_used_for_their_program_alone():
    sizes = BatchSizes((2, 4, 8))
    sizes.record('p', 4, equal=True)
    assert [sizes.fitting('p', n) for n in (1, 2, 3, 4, 5)] == [2, 2, 4, 4, 4]
    assert sizes.untried('p', 5) == 8 and sizes.untried('p', 4) is None
    assert sizes.fitting('q', 4) == 2


def test_a_size_that_differs_is_never_used():
    sizes = BatchSizes((2, 4))
    sizes.record('p', 4, equal=False)
    assert sizes.fitting('p', 4) == 2 and sizes.untried('p', 4) is None
    assert sizes.equal('p') == (2,)


@pytest.mark.parametrize('wrong', [(), (0, 2), (4, 2), (2, 2)])
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match='batch sizes'):
        BatchSizes(wrong)
