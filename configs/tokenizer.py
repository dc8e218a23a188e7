"""Tokenizers: pictures to bits on several scales and back.

    python -m infinity_jax.main --config=configs/tokenizer.py

`demo` (default) trains the tokenizer that the package ships: the embedded emoji at 64², 8x8 codes
of 32 bits. About 20 minutes on two CPU cores; PSNR 24.5 dB on held-out pictures.
"""

from ml_collections import ConfigDict


def get_config(arg: str = 'demo') -> ConfigDict:
    """`arg` names the variant: 'demo'."""
    if arg != 'demo':
        raise ValueError(f'unknown variant {arg!r} of configs/tokenizer.py; known: demo')
    config = ConfigDict()
    config.task = 'tokenizer'
    config.run_dir = 'runs/tokenizer_demo'
    config.seed = 0
    config.init_from = ''  # model folder to start from; '': random weights
    config.steps = 5000
    config.batch_size = 16  # pictures; 5000 · 16 = 80,000 pictures seen

    config.tokenizer = ConfigDict(
        {
            'bits': 32,  # d: a code is 32 bits, 4 bytes
            'base_channels': 64,
            'channel_multipliers': (1, 2),  # 16² at 64 channels, 8² at 128
            'residual_blocks': 2,  # per encoder level; 3 per decoder level
            # 64² x 3 becomes 16² x 48 first: stride 4 · 2 = 8. In one trial of 3 minutes on a
            # CPU this was 3 dB ahead of unshuffle 2 with 32, 64, 128 channels.
            'unshuffle': 4,
            'norm_groups': 8,
        }
    )
    config.grids = ((1, 1), (2, 2), (4, 4), (8, 8))  # 85 tokens, 2720 bits a picture

    config.losses = ConfigDict(
        {
            'l1': 1.0,
            'l2': 5.0,  # PSNR is a matter of squared errors
            'commitment': 0.25,
            'entropy': 0.1,
        }
    )
    config.precision = 'highest'  # of products; 'default' is faster on GPU (TF32) and TPU (bf16)

    config.data = ConfigDict(
        {
            'source': 'emoji',
            'subset': 'all',
            'picture_size': 64,  # pixels
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
    config.eval_batches = 16  # 16 · 16 = 256 held-out pictures
    config.sample_every = 2000
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    config.max_bad_steps = 20  # in a row
    return config
