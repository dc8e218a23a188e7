"""Which programs draw on a device: one for everything, or on a CPU one a layer and scale."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.config import QuantizationConfig
from infinity_jax.inference.cpu_layerwise import LayerWeights, generate_bits_layerwise
from infinity_jax.inference.executables import Programs, call_jitted
from infinity_jax.inference.generate import decode, generate_codes, generate_images
from infinity_jax.inference.scale_steps import Controls, Mode, Text
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import in_mesh
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.transformer.model import Transformer

# Stacked blocks above this are copied layer by layer from main memory at every scale, smaller
# ones from the CPU's cache; one program then starts sooner than many.
LAYERWISE_BYTES = 64 * 2**20


def goes_layerwise(transformer_params: Any, quantization: QuantizationConfig) -> bool:
    """Whether a transformer of these parameters, or shapes, is drawn with layer by layer on a CPU.

    A cache in 8 bits is kept by the one program alone.
    """
    return quantization.cache == 'full' and _bytes(transformer_params['blocks']) > LAYERWISE_BYTES


def static_arguments(
    model: Transformer, autoencoder: Autoencoder, schedule: ScaleSchedule, mode: Mode
) -> dict[str, Any]:
    """The static arguments of `generate_images`."""
    fields = {field.name: getattr(mode, field.name) for field in dataclasses.fields(mode)}
    return {'model': model, 'autoencoder': autoencoder, 'schedule': schedule, **fields}


class Generator:
    """A transformer and a tokenizer's decoder, placed, with the fastest way to run them."""

    def __init__(
        self,
        model: Transformer,
        autoencoder: Autoencoder,
        transformer_params: Any,
        tokenizer_params: Any,
        mesh: Mesh | None = None,
        layerwise: bool | None = None,
        programs: Programs | None = None,
        quantization: QuantizationConfig = QuantizationConfig(),
    ):
        """Takes placed parameters.

        Args:
          model, autoencoder: the networks.
          transformer_params: of the transformer.
          tokenizer_params: of the tokenizer.
          mesh: the devices that share the work; None: the default device.
          layerwise: None chooses, see `goes_layerwise`.
          programs: where the one program is kept; None: nowhere.
          quantization: of the cache.
        """
        if layerwise is None:
            on_cpu = mesh is None and _lies_on_cpu(transformer_params)
            layerwise = on_cpu and goes_layerwise(transformer_params, quantization)
        self.model, self.autoencoder = model, autoencoder
        self._layers: LayerWeights | None = None
        if layerwise:
            self._layers = LayerWeights.of(transformer_params, model.config.depth)
        self.layerwise = layerwise
        self.transformer_params = transformer_params
        self.tokenizer_params = tokenizer_params
        programs = programs or Programs()
        self._draw = programs.call if mesh is None else in_mesh(mesh, call_jitted)

    def __call__(
        self,
        keys_B: jax.Array,
        text: Text,
        controls: Controls,
        schedule: ScaleSchedule,
        negative: Text | None = None,
        mode: Mode = Mode(),
    ) -> jax.Array:
        """Text features to uint8 images (B, Y, X, 3); see `generate.generate_bits`."""
        if self._layers is not None:
            total_Bhwd = self.codes(keys_B, text, controls, schedule, negative, mode)
            return self.decode(total_Bhwd)
        arrays = {
            'variables': {'params': self.transformer_params},
            'autoencoder_variables': {'params': self.tokenizer_params},
            'keys_B': keys_B,
            'text': text,
            'controls': controls,
            'negative': negative,
        }
        static = static_arguments(self.model, self.autoencoder, schedule, mode)
        return self._draw(generate_images, static, arrays)

    def codes(
        self,
        keys_B: jax.Array,
        text: Text,
        controls: Controls,
        schedule: ScaleSchedule,
        negative: Text | None = None,
        mode: Mode = Mode(),
    ) -> jax.Array:
        """The transformer's part alone: accumulated codes (B, h, w, d)."""
        if self._layers is None:
            variables = {'params': self.transformer_params}
            return generate_codes(
                self.model, variables, keys_B, text, controls, schedule, negative, mode
            )
        return generate_bits_layerwise(
            self.model,
            self._layers,
            keys_B,
            text,
            controls,
            schedule,
            negative=negative,
            mode=mode,
        ).total_Bhwd

    def decode(self, total_Bhwd: jax.Array) -> jax.Array:
        """The decoder's part alone: accumulated codes to uint8 images (B, Y, X, 3)."""
        return decode(self.autoencoder, {'params': self.tokenizer_params}, total_Bhwd)


def _lies_on_cpu(params: Any) -> bool:
    """Whether these arrays lie on one CPU device."""
    devices = {d for leaf in jax.tree.leaves(params) for d in leaf.devices()}
    return len(devices) == 1 and next(iter(devices)).platform == 'cpu'


def _bytes(params: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
