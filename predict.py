"""The model behind Replicate's form: `cog predict -i prompt="a red apple"`, see docs/serving.md."""

import os
import secrets
import tempfile

from cog import BasePredictor, Input
from cog import Path as CogPath
from PIL import Image

from infinity_jax import InfinityPipeline, SamplingConfig, UserError
from infinity_jax.inference.edit import Edit
from infinity_jax.runtime.hub import DEMO_FOLDER
from infinity_jax.scales import ScaleSchedule, height_over_width_of, released_name

MODEL = 'INFINITY_JAX_MODEL'  # a model folder, or org/name on the Hugging Face hub
OWN = "model's own"
RATIOS = [OWN, '1:1', '4:3', '3:2', '16:9', '2:1', '3:4', '2:3', '9:16', '1:2']


class Predictor(BasePredictor):
    """Loads the model once and answers one request at a time."""

    def setup(self) -> None:
        """Loads the model and compiles its program for one image."""
        self.pipeline = InfinityPipeline.from_pretrained(os.environ.get(MODEL) or DEMO_FOLDER)
        self.pipeline('a red apple')

    def predict(
        self,
        prompt: str = Input(description='What the image should show.'),
        negative_prompt: str = Input(default='', description='What it should not show.'),
        seed: int = Input(default=None, description='0 to 4294967295; blank: a random one.'),
        guidance_scale: float = Input(
            default=3.0, ge=1, le=10, description='How closely the image follows the prompt.'
        ),
        tau: float = Input(default=0.5, ge=0, le=1, description='Temperature; 0 is greedy.'),
        aspect_ratio: str = Input(default=OWN, choices=RATIOS, description='Width to height.'),
        num_outputs: int = Input(default=1, ge=1, le=4, description='Number of images.'),
        image: CogPath = Input(default=None, description='An image to edit.'),
        mask: CogPath = Input(
            default=None, description='White, or transparent, where the image is generated.'
        ),
        prompt_strength: float = Input(
            default=0.5, ge=0, le=1, description='Of an image without a mask: 0 keeps it.'
        ),
        output_format: str = Input(default='png', choices=['png', 'jpg', 'webp']),
        output_quality: int = Input(default=90, ge=0, le=100, description='Of jpg and webp.'),
    ) -> list[CogPath]:
        """Generates images of a prompt, or edits an image."""
        seed = secrets.randbelow(2**32) if seed is None else seed
        print(f'seed: {seed}')
        sampling = SamplingConfig(guidance_scale, tau or 1.0, top_k=0 if tau else 1)
        settings = {'num': num_outputs, 'seed': seed, 'negative': negative_prompt}
        if image is not None:
            strength = None if mask is not None else prompt_strength
            edit = Edit(str(image), prompt, None if mask is None else str(mask), None, strength)
            images = self.pipeline.edit(edit, sampling=sampling, **settings).images
        elif mask is not None:
            raise UserError('a mask is given without an image; give both')
        else:
            schedule = self._schedule(aspect_ratio)
            images = self.pipeline(
                [prompt], sampling=sampling, schedule=schedule, **settings
            ).images
        return _files(images, output_format, output_quality)

    def _schedule(self, aspect_ratio: str) -> ScaleSchedule:
        own = self.pipeline.schedule
        if aspect_ratio == OWN:
            return own
        released = released_name(own)
        if released is None:
            raise UserError(f'this model has one image shape; set aspect_ratio to "{OWN}"')
        return ScaleSchedule.for_image(height_over_width_of(aspect_ratio), released[1])


def _files(images: list[Image.Image], ending: str, quality: int) -> list[CogPath]:
    """Writes images to a folder of their own."""
    folder = CogPath(tempfile.mkdtemp())
    paths = [folder / f'image_{i}.{ending}' for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path, quality=quality)
    return paths
