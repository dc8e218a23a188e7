"""PatchGAN discriminator, hinge losses and LeCam regularisation of tokenizer training.

Sources: pix2pix (arXiv 1611.07004) for the network, VQGAN (arXiv 2012.09841) for its use and the
adaptive weight, LeCam (arXiv 2104.03310) for the regularisation. Float32 throughout.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from infinity_jax.tokenizer.autoencoder import GroupNorm

WIDEST = 8  # times the first width
NORM_GROUPS = 32  # at most
SLOPE = 0.2  # of the leaky ReLU below zero
ADAPTIVE_EPSILON = 1e-4  # added to the adversarial gradient norm, as in VQGAN


class PatchDiscriminator(nn.Module):
    """Scores every patch of an image; a high logit means real.

    Norms are group norms, over each image by itself. The batch norms of the original would need
    running statistics in the state and sums over all devices, and the logits of an image would
    depend on the other images in its batch.

    Attributes:
      channels: width of the first layer; later ones double it up to eight times.
      layers: stride-2 convolutions; 3 sees patches of 70×70 pixels.
      precision: of the convolutions' products.
    """

    channels: int = 64
    layers: int = 3
    precision: Any = jax.lax.Precision.HIGHEST

    def conv(self, features: int, stride: int, name: str) -> nn.Conv:
        return nn.Conv(
            features,
            (4, 4),
            strides=stride,
            padding=((1, 1), (1, 1)),
            kernel_init=nn.with_logical_partitioning(
                nn.initializers.normal(0.02), (None, None, 'conv_in', 'conv_out')
            ),
            precision=self.precision,
            name=name,
        )

    @nn.compact
    def __call__(self, pixels_BYX3: jax.Array) -> jax.Array:
        """Pixels in about [-1, 1] to logits (B, y, x), one per patch."""
        x = nn.leaky_relu(self.conv(self.channels, 2, 'conv_0')(pixels_BYX3), SLOPE)
        for i in range(1, self.layers + 1):
            features = self.channels * min(2**i, WIDEST)
            x = self.conv(features, 2 if i < self.layers else 1, f'conv_{i}')(x)
            x = GroupNorm(min(NORM_GROUPS, features // 4), name=f'norm_{i}')(x)
            x = nn.leaky_relu(x, SLOPE)
        return self.conv(1, 1, 'conv_out')(x)[..., 0]


def smallest_image(layers: int) -> int:
    """The shortest edge in pixels of an image that gives one logit."""
    edge = 3  # each of the two stride-1 convolutions takes one position
    for _ in range(layers):
        edge = 2 * edge
    return edge


def hinge(real_Byx: jax.Array, fake_Byx: jax.Array) -> jax.Array:
    """The discriminator's loss: 0 once real logits are above 1 and fake ones below −1."""
    return 0.5 * (jnp.mean(nn.relu(1.0 - real_Byx)) + jnp.mean(nn.relu(1.0 + fake_Byx)))


def generator_loss(fake_Byx: jax.Array) -> jax.Array:
    """−mean logit of the reconstructions."""
    return -jnp.mean(fake_Byx)


def lecam(
    real_Byx: jax.Array, fake_Byx: jax.Array, mean_real: jax.Array, mean_fake: jax.Array
) -> jax.Array:
    """Mean square by which logits exceed the other side's moving average.

    Keeps real logits near the mean of fake ones and the other way round, which regularises the
    discriminator on small data sets.

    Args:
      mean_real, mean_fake: moving averages of the mean logits; scalars, constants here.
    """
    above = jnp.mean(jnp.square(nn.relu(real_Byx - mean_fake)))
    below = jnp.mean(jnp.square(nn.relu(mean_real - fake_Byx)))
    return above + below


def adaptive_weight(
    reconstruction_norm: jax.Array, adversarial_norm: jax.Array, limit: float
) -> jax.Array:
    """Ratio of reconstruction gradient to adversarial gradient, clipped to `limit`.

    Args:
      reconstruction_norm: norm of the gradient of the reconstruction terms at the decoder's last
        convolution.
      adversarial_norm: the same of the adversarial term, unweighted.
    """
    return jnp.clip(reconstruction_norm / (adversarial_norm + ADAPTIVE_EPSILON), 0.0, limit)
