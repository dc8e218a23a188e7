"""What training a tokenizer would take on a TPU slice."""

from collections.abc import Callable

from jax.sharding import Mesh

from infinity_jax import flops
from infinity_jax.plan.abstract_tokenizer import abstract_tokenizer_step
from infinity_jax.plan.program_cost import compile_program
from infinity_jax.plan.topology import Topology, can_compile
from infinity_jax.plan.training import Analysis, TrainingPlan, coordinates_of, sizes_of
from infinity_jax.training.train_tokenizer_config import TokenizerRunConfig


def plan_tokenizer(
    config: TokenizerRunConfig, topology: Topology, mesh: Mesh, say: Callable[[str], None]
) -> TrainingPlan:
    """Compiles the step. Its model FLOP are the autoencoder's; LPIPS and discriminator, whose
    arithmetic `flops` does not count, are in the program and its time."""
    step = abstract_tokenizer_step(config, mesh)
    size, batch = config.data.picture_size, config.batch_size
    encode = flops.tokenizer_encode(config.tokenizer, size, size, batch)
    decode = flops.tokenizer_decode(config.tokenizer, size, size, batch)
    work = (encode + decode) * (1 + flops.BACKWARD)
    analysis = Analysis(*sizes_of(step.arguments[0]), work.total, 0.0, batch)
    if not can_compile():
        return TrainingPlan(analysis)
    say('compiling the training step')
    cost = compile_program(
        step.lower, step.arguments, topology, coordinates_of(mesh), lambda name, operands: 0.0
    )
    return TrainingPlan(analysis, cost)
