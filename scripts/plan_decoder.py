"""Estimates the seconds of the decoder at each precision, on TPUs and GPUs that need not exist.

    python scripts/plan_decoder.py h100:1 v5e:1x1 [--preset 2b] [--budget 1M]

The decoder of a released tokenizer is compiled alone for one square image, as in `infinity-jax
plan`, whose estimates and compilers it uses (docs/plan.md).
"""

import argparse
import functools

import jax
import jax.numpy as jnp

from infinity_jax.config import CONVOLUTION_PRECISIONS, PRESETS, released_tokenizer
from infinity_jax.inference.generate import decode
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import MeshConfig, in_mesh, make_mesh, replicated
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.tokenizer.precision import TF32, TF32_MIXED
from infinity_jax.tools.plan.gpu_topology import GpuTopology, lacks_tf32
from infinity_jax.tools.plan.kernel_flops import all_visible, splash_flops
from infinity_jax.tools.plan.program_cost import compile_program
from infinity_jax.tools.plan.topology import devices_of, parse_topology, prepare
from infinity_jax.tools.plan.training import coordinates_of
from infinity_jax.training.loop import with_shardings
from infinity_jax.weights.part_weights import part_shapes
from infinity_jax.weights.placement import decoder_params, shardings_on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('topologies', nargs='+')
    parser.add_argument('--preset', default='2b')
    parser.add_argument('--budget', default='1M')
    args = parser.parse_args()
    topologies = [parse_topology(text) for text in args.topologies]
    prepare()
    transformer = PRESETS[args.preset]
    config = released_tokenizer(transformer)
    schedule = ScaleSchedule.for_image(1.0, args.budget)
    grid = schedule.code_grids(transformer.spatial_patchify)[-1]
    features = jax.ShapeDtypeStruct((1, *grid, config.bits), jnp.float32)
    for topology in topologies:
        mesh = make_mesh(MeshConfig(data=1, fsdp=1), devices_of(topology))
        variables = with_shardings(
            {'params': decoder_params(part_shapes(config))},
            {'params': decoder_params(shardings_on(config, mesh))},
        )
        codes = with_shardings(features, replicated(mesh))
        for name in CONVOLUTION_PRECISIONS:
            without = not isinstance(topology, GpuTopology) or lacks_tf32(topology)
            if name in (TF32, TF32_MIXED) and without:
                continue
            call = functools.partial(decode.lower, Autoencoder(config, precision=name))
            cost = compile_program(
                in_mesh(mesh, call),
                (variables, codes),
                topology,
                coordinates_of(mesh),
                splash_flops(all_visible),
            )
            seconds = 'does not fit' if cost.time is None else f'{cost.time.total:.4f} s'
            print(f'{topology.name:<10} {name:<12} {seconds}  {cost.needed / 2**30:.2f} GiB')


if __name__ == '__main__':
    main()
