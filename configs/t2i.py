"""Text to image: the transformer, trained on images that a frozen tokenizer turns into bits.

    python -m infinity_jax.main --config=configs/t2i.py

`demo` (default) learns the starter subset of the embedded emoji with the shipped tokenizer and
random transformer weights. 9 to 18 minutes on two CPU cores; the matcher then recognises about
80 % of the emoji and all backgrounds.

    python -m infinity_jax.main --config=configs/t2i.py:shipped

`shipped` trains a transformer of the size that the package ships, on 206 emoji: 50 minutes on two
CPU cores for 72 % of the emoji and all backgrounds. 18,000 more steps, 80 minutes, for 93 %:

    python -m infinity_jax.main --config=configs/t2i.py:shipped --config.steps=18000 \
        --config.init_from=runs/t2i_shipped/model --config.run_dir=runs/t2i_shipped_2 \
        --config.optimizer.learning_rate=1.5e-3 --config.seed=2

    python -m infinity_jax.main --config=configs/t2i.py:scenes \
        --config.init_from=runs/t2i_shipped_2/model

`scenes` trains it further, 75 minutes: six in ten images are scenes of one to four of the starter
emoji, or of two shapes in two colours, the tasks of `infinity-jax evaluate scenes`; the others show
single emoji of the 206 as before. 3,000 more steps, 20 minutes, gave what the package ships
(docs/notebook/demo.md). Without `init_from` it goes on from the shipped model.

The sizes of the paper and of the released models (125m, 361m, 940m, 2b, 2.2b, 4.7b, 8b, 20b), each
at 256², 512² and 1024² with the recipe of the paper, one stage after the other:

    python -m infinity_jax.main --config=configs/t2i.py:2b_256 \
        --config.tokenizer=FOLDER --config.text.folder=FLAN_T5_XL
    python -m infinity_jax.main --config=configs/t2i.py:2b_512 \
        --config.tokenizer=FOLDER --config.text.folder=FLAN_T5_XL \
        --config.init_from=runs/t2i_2b_256/model

and so on with 2b_1024. Tokenizer, text encoder and your own images: docs/presets.md. None of
these was run. Chip-hours are computed, not measured: model FLOP of `training.flops` at an
assumed MFU of 40 %.

    preset      steps x batch   TFLOP/image  TPU slice  chip-hours    days
    125m_256    150,000 x 4096         0.42     v5e 4x8           908     1.2
    361m_256    150,000 x 4096         1.19     v5e 8x8         2,567     1.7
    940m_256    150,000 x 4096         3.06     v5e 8x16        6,630     2.2
    2b_256      150,000 x 4096         7.10     v5e 16x16      15,385     2.5
    2b_512      110,000 x 4096        33.46     v5e 16x16      53,140     8.6
    2b_1024      60,000 x 2048       177.60     v5e 16x16      76,930    12.5
    4.7b_1024    60,000 x 2048       352.60     v5p 4x4x8      65,552    21.3
    8b_512      110,000 x 4096       121.17     v5p 4x4x8      82,598    26.9
    8b_1024      60,000 x 2048       584.47     v5p 4x4x8     108,659    35.4
    20b_1024     60,000 x 2048      1333.09     v5p 8x8x8     247,836    20.2

Frozen networks add 1.5 TFLOP per image at 256², 2.3 at 512² and 5.4 at 1024², which for the small
ones is more than their own: store their features first where you can.
"""

import math
import sys

from ml_collections import ConfigDict

# Paper table 1 (2.2b is its 2B) and the released models (2b, 8b), as in `config.PRESETS` of the
# package. The 20B is assumed to have the tokenizer of the 8B, as its own is not known.
STRIDE_16 = {'bits': 32, 'spatial_patchify': False, 'drop_path': 0.1}
STRIDE_8 = {'bits': 14, 'spatial_patchify': True, 'drop_path': 0.1}  # 2x2 codes per token
SIZES = {
    '125m': {'depth': 12, 'width': 768, 'num_heads': 8, **STRIDE_16},
    '361m': {'depth': 16, 'width': 1152, 'num_heads': 12, **STRIDE_16},
    '940m': {'depth': 24, 'width': 1536, 'num_heads': 16, **STRIDE_16},
    '2b': {'depth': 32, 'width': 2048, 'num_heads': 16, **STRIDE_16},
    '2.2b': {'depth': 32, 'width': 2080, 'num_heads': 20, **STRIDE_16},
    '4.7b': {'depth': 40, 'width': 2688, 'num_heads': 24, **STRIDE_16},
    '8b': {'depth': 40, 'width': 3584, 'num_heads': 28, **STRIDE_8},
    '20b': {'depth': 58, 'width': 4608, 'num_heads': 36, **STRIDE_8, 'drop_path': 0.25},
}
# Of a square image's edge in pixels.
STAGES = {
    '256': {'steps': 150_000, 'batch_size': 4096, 'learning_rate': 6e-5},
    '512': {'steps': 110_000, 'batch_size': 4096, 'learning_rate': 6e-5},
    '1024': {'steps': 60_000, 'batch_size': 2048, 'learning_rate': 2e-5},
}
# Chips of the slices above, and images per edge that one of their chips processes at the same time:
# by the memory of rematerialised blocks (table in docs/scaling.md). Those of REMAT were compiled.
CHIPS = {
    '125m': 32, '361m': 64, '940m': 128, '2b': 256, '2.2b': 128, '4.7b': 128, '8b': 128, '20b': 512,
}  # fmt: skip
AT_ONCE_16_GB = {'256': 16, '512': 4, '1024': 1}  # v5e
AT_ONCE_95_GB = {'256': 64, '512': 16, '1024': 2}  # v5p
REMAT = {name: 'queries' for name in ('2b_256', '2b_1024', '8b_1024')}  # compiled, and fit
# 2.2b: its width, 16 · 130, splits over 2 chips only, and half of its state needs a v5p's memory.
ON_V5P = ('2.2b', '4.7b', '8b', '20b')
RENAMED_SIZES = {'5b': '4.7b'}  # name in version 0.1, accepted until version 0.3 -> name
VARIANTS = ('demo', 'shipped', 'scenes', *(f'{size}_{edge}' for size in SIZES for edge in STAGES))


def get_config(arg: str = 'demo') -> ConfigDict:
    """The variant `arg`: 'demo', 'shipped', 'scenes', or SIZE_EDGE such as '2b_256'.

    Raises:
      ValueError: the variant is unknown.
    """
    size, _, edge = arg.partition('_')
    if size in RENAMED_SIZES and edge in STAGES:
        size = RENAMED_SIZES[size]
        print(
            f'variant {arg} is now {size}_{edge}; the old name works until version 0.3',
            file=sys.stderr,
        )
        config = paper(size, edge)
        config.run_dir = f'runs/t2i_{arg}'  # the run folder of the old name
        return config
    if arg not in VARIANTS:
        raise ValueError(f'unknown variant {arg!r} of configs/t2i.py; known: {", ".join(VARIANTS)}')
    if arg in ('demo', 'shipped', 'scenes'):
        return emoji(arg)
    return paper(size, edge)


def paper(size: str, edge: str) -> ConfigDict:
    """A size of the paper at one stage of its recipe (paper 4; see the top of this file)."""
    stage = STAGES[edge]
    config = ConfigDict()
    config.task = 't2i'
    config.run_dir = f'runs/t2i_{size}_{edge}'
    config.seed = 0
    config.init_from = ''  # model folder of the stage before; '': random weights
    config.tokenizer = ''  # model folder with the frozen tokenizer: required
    config.steps = stage['steps']
    config.batch_size = stage['batch_size']  # images, over all devices
    at_once = (AT_ONCE_95_GB if size in ON_V5P else AT_ONCE_16_GB)[edge] * CHIPS[size]
    config.accumulate_steps = max(stage['batch_size'] // at_once, 1)  # parts of a batch
    config.remat = REMAT.get(f'{size}_{edge}', 'full')  # what a block recomputes
    config.attention = 'auto'
    config.transformer = ConfigDict(
        {
            **SIZES[size],
            'mlp_ratio': 4.0,
            'text_channels': 2048,  # of Flan-T5-XL
            'text_length': 512,  # tokens that captions are padded to
            'max_scales': 15,  # 13 are in use, at 1024²; the same table at every stage
            'dtype': 'bfloat16',  # of products inside blocks
        }
    )
    config.text = ConfigDict({'folder': '', 'train': False})  # Hugging Face folder: required
    # As released: one strength per 4 images, the micro-batch of its processes.
    config.self_correction = ConfigDict({'max_strength': 0.3, 'group': 4, 'per_image': False})
    config.condition_drop = 0.1
    config.reweight_scales = True
    config.data = ConfigDict(
        {
            'sources': (),  # your own images, see docs/data.md; (): emoji, as an example
            'subset': 'all',
            'image_size': int(edge),
            'ratios': ('all',),
            'num_workers': 16,
        }
    )
    config.optimizer = ConfigDict(
        {
            'learning_rate': stage['learning_rate'],
            'warmup_steps': 0,
            'decay': 'constant',
            'beta1': 0.9,
            'beta2': 0.97,
            'weight_decay': 0.005,
            'clip_norm': 5.0,
            'ema_decay': 0.9999,
        }
    )
    # Each chip keeps a multiple of 16 rows of every weight matrix, the tile of its registers: XLA
    # gathers other shares through sums, which block all other work. data: as many copies as fit.
    fsdp = math.gcd(SIZES[size]['width'] // 16, CHIPS[size])
    config.mesh = ConfigDict({'data': -1, 'fsdp': fsdp, 'tensor': 1, 'sequence': 1})
    config.log_every = 10
    config.eval_every = 1000
    config.eval_batches = 1  # 2048 images or more
    config.sample_every = 5000
    config.checkpoint_every = 500
    config.keep_checkpoints = 3
    config.max_bad_steps = 20
    return config


def emoji(arg: str) -> ConfigDict:
    """The demo, the training of the model that the package ships, or that on scenes."""
    config = ConfigDict()
    config.task = 't2i'
    config.run_dir = f'runs/t2i_{arg}'
    config.seed = 0
    config.init_from = ''  # model or run folder to start from; '': random weights
    config.tokenizer = ''  # model folder with the frozen tokenizer; '': the one that is shipped
    config.steps = 3600
    config.batch_size = 16  # images; 3600 · 16 = 57,600 images seen, 720 of each emoji

    config.transformer = ConfigDict(
        {
            'depth': 4,
            'width': 128,
            'num_heads': 4,  # head dim 128 / 4 = 32
            'bits': 32,  # d of the tokenizer
            'mlp_ratio': 4.0,  # 4 · 128 = 512
            'text_channels': 128,  # width of the text encoder
            'text_length': 24,  # tokens that captions are padded to
            'max_scales': 4,  # scales of the schedule 1 2 4 8
            'drop_path': 0.0,
            'dtype': 'float32',  # of products inside blocks; 'bfloat16' on GPU and TPU
        }
    )
    config.text = ConfigDict(
        {
            'folder': '',  # Hugging Face folder of encoder or vocabulary; '': the shipped one
            'train': True,  # together with the transformer
            'encoder': {  # a T5 v1.1 encoder
                'vocab_size': 1500,
                'width': 128,
                'num_layers': 2,
                'num_heads': 4,
                'head_dim': 32,
                'ffn_width': 256,
                'buckets': 32,
                'max_distance': 128,
            },
        }
    )
    config.self_correction = ConfigDict(
        {
            'max_strength': 0.1,  # largest probability with which a bit is flipped; 0: none
            'group': 0,  # images that share a probability; 0: the whole batch
            'per_image': False,  # the same as group 1
        }
    )
    config.condition_drop = 0.1  # share of captions dropped, for guidance
    config.reweight_scales = True  # tokens weigh 1/√(h·w) in the loss
    config.attention = 'auto'  # by platform; 'xla', 'cudnn' or 'splash', see docs/scaling.md
    config.remat = 'none'  # what the backward pass recomputes, see docs/scaling.md
    config.layers = 'auto'  # on a CPU listed in the program, else looped over
    config.encode_once = 'auto'  # on a CPU keeps the features of each emoji image, 256 MB at most
    config.accumulate_steps = 1  # parts of a batch processed in turn; same loss, less memory

    config.data = ConfigDict(
        {
            'source': 'emoji',
            'subset': 'starter',
            'image_size': 64,  # pixels
            'placed_rate': 0.1,  # share of images of random size and place; the others are large
            'scenes': 0.0,  # share of images that are scenes of one to four emoji
            'scene_subset': '',  # emoji of the scenes; '': `subset`
            'num_workers': 0,  # rendering processes; 0: threads
            'sources': (),  # your own images instead, see docs/data.md
            'ratios': ('1.000',),  # buckets; ('all',): 15, from image_size 256
        }
    )

    config.optimizer = ConfigDict(
        {
            'learning_rate': 2e-3,  # never scaled by the batch size
            'warmup_steps': 100,
            'decay': 'cosine',  # to final_learning_rate at the last step; the paper: 'constant'
            'final_learning_rate': 2e-5,
            'beta1': 0.9,
            'beta2': 0.97,
            'weight_decay': 0.005,
            'clip_norm': 5.0,  # global norm, as released
            'ema_decay': 0.995,  # a window of 200 steps; the paper's 0.9999 needs longer runs
        }
    )

    config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1})  # -1: the rest
    config.log_every = 10  # steps
    config.eval_every = 300
    config.eval_batches = 8  # 8 · 16 = 128 held-out images
    config.sample_every = 900
    config.first_sample = 60  # within the first minute on two cores
    config.checkpoint_every = 300
    config.keep_checkpoints = 2
    config.max_bad_steps = 20  # in a row

    if arg in ('shipped', 'scenes'):
        config.steps = 11_000  # 176,000 images
        config.transformer.update({'depth': 5, 'width': 192, 'num_heads': 3})
        config.self_correction.max_strength = 0.3
        config.data.subset = 'demo'
        config.data.placed_rate = 0.5  # images of random size and place are learned last
        config.optimizer.ema_decay = 0.998
        config.eval_every = 500
        config.sample_every = 2000
        config.checkpoint_every = 500
    if arg == 'scenes':
        config.init_from = 'infinity_jax/demo'
        config.steps = 14_000  # 224,000 images
        config.optimizer.learning_rate = 1.5e-3
        config.self_correction.max_strength = 0.1
        config.data.scenes = 0.6
        config.data.placed_rate = 0.55  # of the single emoji
        config.data.scene_subset = 'starter'  # some pairs of 80 emoji are learned, of 206 none
    return config
