"""Memory of the quantizer and its entropy penalty in training, by number of bits.

    python -m infinity_jax.tools.bench.quantizer

For comparison it has the entropy term of lookup-free quantization (LFQ, arXiv 2310.05737), which
compares every position with a table of all 2^d codes; nothing else in the package uses that term.
Programs are compiled, not run: the figures are the compiler's, for the device that JAX finds.
"""

import functools

import jax
import jax.numpy as jnp

from infinity_jax.scales import Grid, ScaleSchedule
from infinity_jax.tokenizer.quantizer import quantize
from infinity_jax.training.tokenizer.losses import (
    INVERSE_TEMPERATURE,
    EntropyTerms,
    commitment,
    entropy_penalty,
)

BITS = (16, 18, 20, 32, 64)
LARGEST_TABLE = 20  # bits; beyond, the table's probabilities are counted instead of compiled
IMAGES = 4


def bitwise_loss(features_Bhwd: jax.Array, grids: tuple[Grid, ...]) -> jax.Array:
    """The penalties that training adds to the losses on pixels, plus the sum that is decoded."""
    quantized = quantize(features_Bhwd, grids)
    penalty = entropy_penalty(quantized.normalised) + commitment(quantized.normalised)
    return penalty + jnp.sum(quantized.total_Bhwd)


def table_entropies(z_Bhwd: jax.Array) -> EntropyTerms:
    """Both entropies of LFQ: of a softmax over the distances of z to all 2^d codes, in nats."""
    d = z_Bhwd.shape[-1]
    bits = jnp.arange(2**d, dtype=jnp.int32)[:, None] >> jnp.arange(d, dtype=jnp.int32)[None]
    codes_Vd = jnp.where(bits & 1, 1.0, -1.0) / d**0.5
    logits_LV = 2 * INVERSE_TEMPERATURE * z_Bhwd.reshape(-1, d) @ codes_Vd.T
    log_p_LV = jax.nn.log_softmax(logits_LV)
    p_LV = jnp.exp(log_p_LV)
    per_sample = -jnp.mean(jnp.sum(p_LV * log_p_LV, axis=-1))
    average_V = jnp.mean(p_LV, axis=0)
    return EntropyTerms(per_sample, -jnp.sum(average_V * jnp.log(average_V + 1e-20)))


def table_loss(features_Bhwd: jax.Array, grids: tuple[Grid, ...]) -> jax.Array:
    """`bitwise_loss` with the entropy term of LFQ, computed for each scale separately."""
    quantized = quantize(features_Bhwd, grids)
    terms = [table_entropies(z) for z in quantized.normalised]
    penalty = sum(t.per_sample - t.codebook for t in terms) / (INVERSE_TEMPERATURE * len(grids))
    return penalty + commitment(quantized.normalised) + jnp.sum(quantized.total_Bhwd)


def compiled_bytes(loss, bits: int, grids: tuple[Grid, ...], images: int) -> int:
    """Temporary memory of value and gradient, as the compiler plans it."""
    features = jax.ShapeDtypeStruct((images, *grids[-1], bits), jnp.float32)
    step = jax.jit(jax.value_and_grad(functools.partial(loss, grids=grids)))
    memory = step.lower(features).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def rows(
    bits: tuple[int, ...] = BITS,
    grids: tuple[Grid, ...] = ScaleSchedule.for_image(1.0, '0.06M').grids,
    images: int = IMAGES,
    largest_table: int = LARGEST_TABLE,
) -> list[tuple[int, int, int, bool]]:
    """(d, bytes here, bytes with a table, whether the latter were compiled) of each d.

    Where they were not, they are the bytes of the probabilities alone: one float32 per code and
    position of the finest scale.
    """
    table = []
    for d in bits:
        small = d <= largest_table
        height, width = grids[-1]
        counted = 4 * images * height * width * 2**d
        full = compiled_bytes(table_loss, d, grids, images) if small else counted
        table.append((d, compiled_bytes(bitwise_loss, d, grids, images), full, small))
    return table


def main() -> None:
    """Prints the table in Markdown."""
    print(f'{IMAGES} images of 256², 7 scales, {jax.devices()[0].device_kind}')
    print('| d | bitwise, MB | full code table, GB |\n|---|---|---|')
    for d, ours, full, small in rows():
        mark = '' if small else ' (counted)'
        print(f'| {d} | {ours / 1e6:.2f} | {full / 1e9:.3g}{mark} |')


if __name__ == '__main__':
    main()
