"""Tokenizers: images to bits on several scales and back.

    python -m infinity_jax.main --config=configs/tokenizer.py

`demo` (default) trains a tokenizer like the one that the package ships: the embedded emoji at 64²,
8x8 codes of 32 bits. About 20 minutes on two CPU cores. The shipped one had β 100 instead
of 16 and reached 24.5 dB on held-out images; `demo_decoder` then trained its decoder further.

`images` is the same on your own images, found in a folder and those below it. No captions are
read, and a share of whole images is held out:

    python -m infinity_jax.main --config=configs/tokenizer.py:images \\
        '--config.data.sources[0].path=IMAGES'

`demo_decoder` trains a deeper decoder for the shipped tokenizer, without a change of its bits.

The released architectures, in two stages:

    python -m infinity_jax.main --config=configs/tokenizer.py:d32_stage1 \\
        --config.vgg_weights=vgg16.pth --config.lpips_heads=vgg.pth
    python -m infinity_jax.main --config=configs/tokenizer.py:d32_stage2 \\
        --config.init_from=runs/tokenizer_d32_stage1/model \\
        --config.vgg_weights=vgg16.pth --config.lpips_heads=vgg.pth

`d16`, `d18`, `d20`, `d24`, `d32`, `d48` and `d64` have stride 16, `d14` (for the 8B) stride 8.
`_stage1` is 256², 500,000 steps, the discriminator from step 50,000; `_stage2` is 1024² and 14
other shapes of that area on all 13 scales, 200,000 steps, scales dropped at random. `vgg16.pth` is
torchvision's VGG-16, `vgg.pth` the heads of the LPIPS package; without them LPIPS is off, and
the run prints a line about it.

Hardware and cost: not run. XLA counts 2.8 TFLOP for a step on one 256² image, LPIPS and
discriminator included; so stage 1 costs 3.6e20 FLOP at its batch of 256 and stage 2 about 5.7e20
at 64 (what `remat` computes again not counted), 42 and 66 days of one accelerator that sustains
100 TFLOP/s. Batch sizes are ours: paper and released scripts name neither them nor hardware.
Both are meant for 16 chips of v5e, stage 2 as four parts of 16 images (docs/plan.md).
Expected by the paper on ImageNet at 256², rFID / PSNR: d16 1.22 / 20.9, d24 0.75 / 22.0,
d32 0.61 / 22.7, d64 0.33 / 24.9.
"""

import sys

from ml_collections import ConfigDict

STRIDE_16 = (16, 18, 20, 24, 32, 48, 64)  # bits
STRIDE_8 = (14,)
STAGES = ('stage1', 'stage2')
DEMOS = ('demo', 'demo_decoder', 'images')
VARIANTS = (*DEMOS, *(f'd{d}_{stage}' for d in (*STRIDE_8, *STRIDE_16) for stage in STAGES))


def get_config(arg: str = 'demo') -> ConfigDict:
    """`arg` names the variant: 'demo', or 'd32_stage1' and so on."""
    if arg == 'pictures':
        print(
            'variant pictures is now images; the old name works until version 0.3', file=sys.stderr
        )
        config = images()
        config.run_dir = 'runs/tokenizer_pictures'  # the run folder of the old name
        return config
    if arg not in VARIANTS:
        raise ValueError(
            f'unknown variant {arg!r} of configs/tokenizer.py; known: {", ".join(VARIANTS)}'
        )
    small = {'demo': demo, 'demo_decoder': demo_decoder, 'images': images}
    return small[arg]() if arg in small else released(*arg.removeprefix('d').split('_'))


def demo() -> ConfigDict:
    """A tokenizer of the size that the package ships."""
    config = ConfigDict()
    config.task = 'tokenizer'
    config.run_dir = 'runs/tokenizer_demo'
    config.seed = 0
    config.init_from = ''  # model or run folder to start from; '': random weights
    config.freeze_encoder = False  # True: trains the decoder alone, without a change of bits
    config.steps = 5000
    config.batch_size = 16  # images; 5000 · 16 = 80,000 images seen

    config.tokenizer = ConfigDict(
        {
            'bits': 32,  # d: a code is 32 bits, 4 bytes
            'base_channels': 64,
            'channel_multipliers': (1, 2),  # 16² at 64 channels, 8² at 128
            'residual_blocks': 2,  # per encoder level
            'decoder_blocks': 0,  # per decoder level; 0: one more than the encoder's
            'kernel_size': 3,  # 1, with a single level: each code and its pixels by themselves
            # 64² x 3 becomes 16² x 48 first: stride 4 · 2 = 8. In one trial of 3 minutes on a
            # CPU this was 3 dB ahead of unshuffle 2 with 32, 64, 128 channels.
            'unshuffle': 4,
            'norm_groups': 8,
        }
    )
    config.grids = ((1, 1), (2, 2), (4, 4), (8, 8))  # 85 tokens, 2720 bits per image

    config.losses = ConfigDict(
        {
            'l1': 1.0,
            'l2': 5.0,  # PSNR measures squared errors
            'commitment': 0.25,
            'entropy': 0.1,
            # β of the entropy term. With the released 100, which the shipped tokenizer had too, a
            # certain bit of d = 32 has no gradient left: 6 of 32 never changed on coarse scales.
            'inverse_temperature': 16.0,
            'perceptual': 0.0,  # LPIPS; needs the two files below
            'truncated': 0.0,
        }
    )
    config.quantizer = ConfigDict(
        {
            'scale_drop': 0.0,
            'keep_first': False,
            'keep_last': True,
            'flip_rate': 0.0,
            'flip_scales': 1,
            'attach_residual': False,
        }
    )
    config.adversarial = ConfigDict(
        {
            'weight': 0.0,  # 0: no discriminator
            'start_step': 0,
            'adaptive': False,  # True: `weight` times a ratio of gradient norms
            'adaptive_limit': 1e4,  # of that ratio
            'channels': 64,
            'layers': 3,  # of stride 2; with 2, patches of 34², flat backgrounds got a grain
            'lecam': 0.3,
            'lecam_decay': 0.999,  # of its moving averages of logits
            # Little momentum, and a higher rate than the tokenizer's, which was 1e-4 when this
            # was measured: with equal rates and beta1 0.9 each side overshot the other.
            'optimizer': ConfigDict(
                {
                    'learning_rate': 4e-4,
                    'warmup_steps': 100,
                    'decay': 'cosine',  # from start_step to the last step
                    'final_learning_rate': 1e-5,
                    'beta1': 0.5,
                    'beta2': 0.9,
                    'weight_decay': 0.005,
                    'clip_norm': 1.0,
                }
            ),
        }
    )
    config.vgg_weights = ''  # VGG-16 in torchvision's format
    config.lpips_heads = ''  # of the LPIPS package, version 0.1
    config.precision = 'highest'  # of products; 'default' is faster on GPU (TF32) and TPU (bf16)
    config.dtype = 'float32'  # of convolutions; 'bfloat16' halves the memory of activations
    config.remat = 'none'  # 'full': the backward pass recomputes residual blocks
    config.accumulate_steps = 1  # parts of a batch processed in turn, for less memory

    config.data = ConfigDict(
        {
            'source': 'emoji',
            'subset': 'all',
            'image_size': 64,  # pixels
            'num_workers': 0,  # rendering processes; 0: threads
        }
    )

    config.optimizer = ConfigDict(
        {
            'learning_rate': 1e-3,
            'warmup_steps': 200,
            'decay': 'cosine',  # to final_learning_rate at the last step
            'final_learning_rate': 1e-5,
            'beta1': 0.9,
            'beta2': 0.97,
            'weight_decay': 0.005,
            'clip_norm': 1.0,  # global norm; the released transformer uses 5
            'ema_decay': 0.999,
        }
    )

    config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1})  # -1: the rest
    config.log_every = 20  # steps
    config.eval_every = 500
    config.eval_batches = 16  # 16 · 16 = 256 held-out images
    config.sample_every = 2000
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    config.max_bad_steps = 20  # in a row
    return config


def demo_decoder() -> ConfigDict:
    """A deeper decoder for the shipped tokenizer; its bits and its transformer do not change."""
    config = demo()
    config.run_dir = 'runs/tokenizer_demo_decoder'
    config.init_from = 'infinity_jax/demo'
    config.freeze_encoder = True
    config.tokenizer.decoder_blocks = 6
    # Half of the images show the emoji that the shipped transformer was trained on.
    config.data.sources = tuple(
        {'kind': 'emoji', 'subset': name, 'weight': 1.0} for name in ('demo', 'all')
    )
    return config


def images() -> ConfigDict:
    """The demo's tokenizer on a folder of images."""
    config = demo()
    config.run_dir = 'runs/tokenizer_images'
    config.data = ConfigDict(
        {
            'sources': ({'kind': 'folder', 'path': 'images'},),
            'held_out_share': 0.2,  # of the images
            'smallest_crop': 0.25,  # share of the largest square's edge; size and place are random
            'image_size': 64,  # pixels
            'num_workers': 0,
        }
    )
    return config


def released(bits: str, stage: str) -> ConfigDict:
    """A released architecture in one of the two stages of its recipe (see the top of this file)."""
    config = ConfigDict()
    config.task = 'tokenizer'
    config.run_dir = f'runs/tokenizer_d{bits}_{stage}'
    config.seed = 0
    config.init_from = ''  # stage 2: the model folder of stage 1
    config.freeze_encoder = False
    config.steps = 500_000 if stage == 'stage1' else 200_000
    config.batch_size = 256 if stage == 'stage1' else 64  # images; not published

    config.tokenizer = ConfigDict(
        {
            'bits': int(bits),  # d
            'base_channels': 128,
            # Stride 2^(levels − 1): 16, or 8 for the 14 bits of the 8B model.
            'channel_multipliers': (1, 2, 4, 4) if int(bits) in STRIDE_8 else (1, 2, 4, 4, 4),
            'residual_blocks': 2,  # per encoder level
            'decoder_blocks': 0,  # per decoder level; 0: one more than the encoder's
            'kernel_size': 3,
            'norm_groups': 32,
        }
    )
    config.grids = ()  # the released schedule of each image's shape

    # Published: l1 1, LPIPS 1, GAN 0.3, and 4 times (0.25 commitment + 0.1 entropy).
    config.losses = ConfigDict(
        {
            'l1': 1.0,
            'l2': 0.0,
            'perceptual': 1.0,  # LPIPS
            'commitment': 4 * 0.25,
            'entropy': 4 * 0.1,
            'inverse_temperature': 100.0,  # β of the entropy term
            'truncated': 0.0,
        }
    )
    config.quantizer = ConfigDict(
        {
            'scale_drop': 0.0 if stage == 'stage1' else 0.5,
            'keep_first': False,
            'keep_last': True,
            'flip_rate': 0.0,
            'flip_scales': 1,
            'attach_residual': False,
        }
    )
    config.adversarial = ConfigDict(
        {
            'weight': 0.3,
            # Stage 2 has a new discriminator, as model folders hold none; it starts at once.
            'start_step': 50_000 if stage == 'stage1' else 0,
            'adaptive': False,
            'adaptive_limit': 1e4,
            'channels': 64,
            'layers': 3,
            'lecam': 0.05,  # the weight that the released code has for it
            'lecam_decay': 0.999,
            'optimizer': ConfigDict(
                {
                    'learning_rate': 1e-4,
                    'warmup_steps': 0,
                    'decay': 'constant',
                    'beta1': 0.9,
                    'beta2': 0.95,
                    'weight_decay': 0.01,
                    'clip_norm': 1.0,
                }
            ),
        }
    )
    config.vgg_weights = ''  # VGG-16 in torchvision's format
    config.lpips_heads = ''  # of the LPIPS package, version 0.1
    config.precision = 'default'  # of products outside the quantizer: TF32 on GPU, bf16 on TPU
    # 1024² needs memory: 64 images in 4 parts are one per chip of a v5e:4x4, see docs/plan.md.
    config.dtype = 'float32' if stage == 'stage1' else 'bfloat16'  # of convolutions
    config.remat = 'none' if stage == 'stage1' else 'full'
    config.accumulate_steps = 1 if stage == 'stage1' else 4

    config.data = ConfigDict(
        {
            # Your own images, see docs/data.md; (): the embedded emoji, as an example.
            'sources': (),
            'subset': 'all',
            'ratios': ('1.000',) if stage == 'stage1' else ('all',),
            'image_size': 256 if stage == 'stage1' else 1024,  # pixels
            'num_workers': 16,
        }
    )
    config.optimizer = ConfigDict(
        {
            'learning_rate': 1e-4,
            'warmup_steps': 0,
            'decay': 'constant',
            'beta1': 0.9,
            'beta2': 0.95,  # as the released code's defaults, and the clip
            'weight_decay': 0.01,  # AdamW's usual one; not published
            'clip_norm': 1.0,  # global norm
            'ema_decay': 0.9999,
        }
    )

    config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1})
    config.log_every = 50  # steps
    config.eval_every = 5000
    config.eval_batches = 8
    config.sample_every = 5000
    config.checkpoint_every = 2500
    config.keep_checkpoints = 2
    config.max_bad_steps = 20
    return config
