"""The memory table: linear in d here, 2^d with a table, and the same entropies where both exist."""

import jax
import pytest

from infinity_jax.tokenizer.quantizer import normalised_residual
from infinity_jax.tools.bench.quantizer import rows, table_entropies
from infinity_jax.training.tokenizer.losses import bit_entropies

GRIDS = ((1, 1), (2, 2), (4, 4))


def test_bitwise_memory_is_linear_and_the_tables_doubles_with_each_bit():
    table = rows((8, 10, 32, 64), GRIDS, images=2, largest_table=10)
    ours = {d: small for d, small, _, _ in table}
    full = {d: large for d, _, large, _ in table}
    assert ours[64] < 3 * ours[32] < 20 * ours[8]
    assert full[10] > 2.5 * full[8] and full[8] > ours[8]
    assert [compiled for *_, compiled in table] == [True, True, False, False]
    assert full[32] == 4 * 2 * 16 * 2**32


def test_the_table_has_the_entropies_of_independent_bits():
    """Distances to corners of a cube are sums over bits, so a position's entropy is as well."""
    features = jax.random.normal(jax.random.key(0), (2, 4, 4, 6))
    z = normalised_residual(features, 0 * features, (4, 4))
    ours, table = bit_entropies(z), table_entropies(z)
    assert table.per_sample == pytest.approx(float(ours.per_sample), rel=1e-4)
    # Averages over positions are no longer independent: at most the sum of the bits' entropies.
    assert ours.per_sample < table.codebook < ours.codebook
