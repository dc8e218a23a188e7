"""The fastest way to generate on a device: one program, or on a CPU one per layer and scale."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infinity_jax.inference.cpu_layerwise import LayerWeights, generate_bits_layerwise
from infinity_jax.inference.executables import Executables, call_jitted
from infinity_jax.inference.generate import (
    NetworkParams,
    Networks,
    decode,
    generate_codes,
    generate_images,
    networks_after_fault,
    networks_of,
)
from infinity_jax.inference.given_bits import GivenBits
from infinity_jax.inference.sampling import GenerationSettings, SamplingNumbers
from infinity_jax.inference.scale_steps import GenerationInputs, Text
from infinity_jax.inference.stepwise import OnScale, generate_by_scale
from infinity_jax.sharding import in_mesh, target_platform, to_host
from infinity_jax.tokenizer.precision import in_use
from infinity_jax.weights.placement import PlacedModel, platform_of, share_batch

# Stacked blocks above this are copied layer by layer from main memory at every scale, smaller
# ones from the CPU's cache; one program then starts sooner than many.
LAYERWISE_BYTES = 64 * 2**20


def goes_layerwise(transformer_params: Any, int8_cache: bool) -> bool:
    """Whether a transformer of these parameters, or shapes, generates layer by layer on a CPU.

    Only the one program has a cache in 8 bits.
    """
    return not int8_cache and _bytes(transformer_params['blocks']) > LAYERWISE_BYTES


@jax.jit
def image_keys(seeds_B2: jax.Array) -> jax.Array:
    """One random key per image from its (seed, index), uint32, with their sharding."""

    def key(seed_and_index: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed_and_index[0]), seed_and_index[1])

    return jax.vmap(key)(seeds_B2)


class Generator:
    """Transformer and tokenizer's decoder, on their devices, with the fastest way to run them."""

    def __init__(
        self,
        networks: Networks,
        params: NetworkParams,
        mesh: Mesh | None = None,
        *,
        layerwise: bool | None = None,
        int8_cache: bool = False,
        executables: Executables | None = None,
    ):
        """Takes placed parameters.

        Args:
          networks: transformer and autoencoder.
          params: their parameters.
          mesh: the devices that share the work; None: the default device.
          layerwise: None chooses, see `goes_layerwise`.
          int8_cache: whether calls will keep keys and values in 8 bits.
          executables: the store of compiled programs; None: nothing is stored.
        """
        if layerwise is None:
            on_cpu = mesh is None and _on_one_cpu(params.transformer)
            layerwise = on_cpu and goes_layerwise(params.transformer, int8_cache)
        self.networks, self.params = networks, params
        self._mesh = mesh
        self.layerwise = layerwise
        self._layers: LayerWeights | None = None
        if layerwise:
            depth = networks.transformer.config.depth
            self._layers = LayerWeights.of(params.transformer, depth)
        executables = executables or Executables()
        self._run = executables.call if mesh is None else in_mesh(mesh, call_jitted)
        self._started = False

    @classmethod
    def of_model(cls, model: PlacedModel, executables: Executables | None = None) -> 'Generator':
        """The generator of a model whose weights are in place."""
        return cls(
            networks_of(model.configs, model.quantization),
            NetworkParams(model.transformer_params, model.tokenizer_params),
            model.mesh,
            int8_cache=model.quantization.cache == 'int8',
            executables=executables,
        )

    @property
    def decoder_precision(self) -> str:
        """The precision of the decoder's convolutions in use, not 'auto'."""
        platform = platform_of(self._mesh) or target_platform()
        return in_use(self.networks.autoencoder.precision, platform)

    def __call__(self, inputs: GenerationInputs, settings: GenerationSettings) -> jax.Array:
        """Text features to uint8 images (B, Y, X, 3); see `generate.generate_bits`."""
        if self._layers is not None:
            return self.decode(self.codes(inputs, settings))
        traced = {'params': self.params, 'inputs': inputs}

        def run() -> jax.Array:
            static = {'networks': self.networks, 'settings': settings}
            return self._run(generate_images, static, traced)

        return self._with_fallback(run)

    def images(
        self,
        seeds_B2: np.ndarray,
        text: tuple[Text, Text | None],
        numbers: SamplingNumbers,
        settings: GenerationSettings,
        given: GivenBits | None = None,
        flip_rate: float = 0.0,
    ) -> np.ndarray:
        """Images on the host: uint8 (B, Y, X, 3).

        Args:
          seeds_B2: (seed, index) of each image: image i of a seed is always the same one.
          text: features of the prompts and of the negative text, if there is one.
          numbers, settings: guidance, temperature and what else is chosen per call.
          given: bits of source images, for editing.
          flip_rate: see `GenerationJob`; 0 runs the program without flips.
        """
        keys_B = image_keys(share_batch(seeds_B2.astype(np.uint32), self._mesh))
        given = None if given is None else share_batch(given, self._mesh)
        rate = jnp.float32(flip_rate) if flip_rate else None
        inputs = GenerationInputs(keys_B, text[0], numbers, text[1], given, rate)
        pixels = self(inputs, settings)
        return self._on_host(pixels)

    def decoded(self, total_Bhwd: np.ndarray) -> np.ndarray:
        """Accumulated codes (B, h, w, d) to images on the host; B fits the mesh."""
        decode = self.decode if self._mesh is None else in_mesh(self._mesh, self.decode)
        return self._on_host(decode(share_batch(total_Bhwd, self._mesh)))

    def _on_host(self, pixels: jax.Array) -> np.ndarray:
        return np.asarray(pixels if self._mesh is None else to_host(pixels, self._mesh))

    def codes(self, inputs: GenerationInputs, settings: GenerationSettings) -> jax.Array:
        """The transformer's part alone: accumulated codes (B, h, w, d)."""
        if self._layers is not None:
            model = self.networks.transformer
            return generate_bits_layerwise(model, self._layers, inputs, settings).total_Bhwd
        variables = {'params': self.params.transformer}
        return self._with_fallback(
            lambda: generate_codes(self.networks.transformer, variables, inputs, settings)
        )

    def codes_by_scale(
        self, inputs: GenerationInputs, settings: GenerationSettings, on_scale: OnScale
    ) -> jax.Array:
        """`codes`, with a call after every scale; see `stepwise.generate_by_scale`."""
        if self._layers is not None:
            model = self.networks.transformer
            generated = generate_bits_layerwise(
                model, self._layers, inputs, settings, on_scale=on_scale
            )
            return generated.total_Bhwd
        variables = {'params': self.params.transformer}

        def run() -> jax.Array:
            model = self.networks.transformer
            return generate_by_scale(model, variables, inputs, settings, on_scale)

        return self._with_fallback(run)

    def _with_fallback(self, run: Callable[[], jax.Array]) -> jax.Array:
        """`run()`; after a fault of cuDNN attention, once again with XLA's from then on.

        The first result is waited for, since kernels that cannot start fail only then.
        """
        try:
            result = run()
            if not self._started:
                jax.block_until_ready(result)
        except RuntimeError as error:
            self.networks = networks_after_fault(self.networks, error)
            result = run()
        self._started = True
        return result

    def decode(self, total_Bhwd: jax.Array) -> jax.Array:
        """The decoder's part alone: accumulated codes to uint8 images (B, Y, X, 3)."""
        variables = {'params': self.params.tokenizer}
        return decode(self.networks.autoencoder, variables, total_Bhwd)


def _on_one_cpu(params: Any) -> bool:
    """Whether all these arrays are on one CPU device."""
    devices = {d for leaf in jax.tree.leaves(params) for d in leaf.devices()}
    return len(devices) == 1 and next(iter(devices)).platform == 'cpu'


def _bytes(params: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
