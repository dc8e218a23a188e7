"""Which programs draw on a device: one for everything, or on a CPU one a layer and scale."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from infinity_jax.draw_layerwise import LayerWeights, draw_bits_layerwise
from infinity_jax.draw_steps import Controls, Mode, Text
from infinity_jax.generate import decode, draw_codes, draw_pictures
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import in_mesh
from infinity_jax.tokenizer.autoencoder import Autoencoder
from infinity_jax.transformer.model import Transformer

# Stacked blocks above this are copied layer by layer from main memory at every scale, smaller
# ones from the CPU's cache; one program then starts sooner than many.
LAYERWISE_BYTES = 64 * 2**20


class Drawing:
    """A transformer and a tokenizer's decoder, placed, with the fastest way to run them."""

    def __init__(
        self,
        model: Transformer,
        autoencoder: Autoencoder,
        transformer_params: Any,
        tokenizer_params: Any,
        mesh: Mesh | None = None,
        layerwise: bool | None = None,
    ):
        """Takes placed parameters.

        Args:
          model, autoencoder: the networks.
          transformer_params: of the transformer.
          tokenizer_params: of the tokenizer.
          mesh: the devices that share the work; None: the default device.
          layerwise: None chooses: on one CPU, for stacks above `LAYERWISE_BYTES`.
        """
        if layerwise is None:
            layerwise = mesh is None and _lies_on_cpu(transformer_params)
            layerwise = layerwise and _bytes(transformer_params['blocks']) > LAYERWISE_BYTES
        self.model, self.autoencoder = model, autoencoder
        self._layers: LayerWeights | None = None
        if layerwise:
            self._layers = LayerWeights.of(transformer_params, model.config.depth)
        self.layerwise = layerwise
        self.transformer_params = transformer_params
        self.tokenizer_params = tokenizer_params
        self._draw = draw_pictures if mesh is None else in_mesh(mesh, draw_pictures)

    def __call__(
        self,
        keys_B: jax.Array,
        text: Text,
        controls: Controls,
        schedule: ScaleSchedule,
        negative: Text | None = None,
        mode: Mode = Mode(),
    ) -> jax.Array:
        """Text features to uint8 pictures (B, Y, X, 3); see `generate.draw_bits`."""
        if self._layers is not None:
            total_Bhwd = self.codes(keys_B, text, controls, schedule, negative, mode)
            return self.decode(total_Bhwd)
        return self._draw(
            self.model,
            self.autoencoder,
            {'params': self.transformer_params},
            {'params': self.tokenizer_params},
            keys_B,
            text,
            controls,
            schedule,
            negative,
            guided=mode.guided,
            guidance_layer=mode.guidance_layer,
            top_k=mode.top_k,
            top_p=mode.top_p,
        )

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
            return draw_codes(
                self.model, variables, keys_B, text, controls, schedule, negative, mode
            )
        return draw_bits_layerwise(
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
        """The decoder's part alone: accumulated codes to uint8 pictures (B, Y, X, 3)."""
        return decode(self.autoencoder, {'params': self.tokenizer_params}, total_Bhwd)


def _lies_on_cpu(params: Any) -> bool:
    """Whether these arrays lie on one CPU device."""
    devices = {d for leaf in jax.tree.leaves(params) for d in leaf.devices()}
    return len(devices) == 1 and next(iter(devices)).platform == 'cpu'


def _bytes(params: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
