"""Text to image: the transformer, trained on pictures that a frozen tokenizer turns into bits.

    python -m infinity_jax.main --config=configs/t2i.py

`demo` (default) learns the starter subset of the embedded emoji with the shipped tokenizer and
random transformer weights. 14 minutes on two CPU cores; the matcher then finds about 70 % of the
emoji and all backgrounds.

    python -m infinity_jax.main --config=configs/t2i.py:shipped

`shipped` trains the transformer that the package ships, on 206 emoji: 50 minutes on two CPU cores
for 72 % of the emoji and all backgrounds; 18,000 more steps from there, 80 minutes, for 91 %:

    python -m infinity_jax.main --config=configs/t2i.py:shipped --config.init_from=FOLDER \
        --config.steps=18000 --config.optimizer.learning_rate=1.5e-3 --config.seed=2
"""

from ml_collections import ConfigDict


def get_config(arg: str = 'demo') -> ConfigDict:
    """`arg` names the variant: 'demo' or 'shipped'."""
    if arg not in ('demo', 'shipped'):
        raise ValueError(f'unknown variant {arg!r} of configs/t2i.py; known: demo, shipped')
    config = ConfigDict()
    config.task = 't2i'
    config.run_dir = f'runs/t2i_{arg}'
    config.seed = 0
    config.init_from = ''  # model or run folder to start from; '': random weights
    config.tokenizer = ''  # model folder with the frozen tokenizer; '': the one that is shipped
    config.steps = 3600
    config.batch_size = 16  # pictures; 3600 · 16 = 57,600 pictures seen, 720 of each emoji

    config.transformer = ConfigDict(
        {
            'depth': 4,
            'width': 192,
            'num_heads': 3,  # head dim 192 / 3 = 64
            'bits': 32,  # d of the tokenizer
            'mlp_ratio': 4.0,  # 4 · 192 = 768
            'text_channels': 128,  # width of the text encoder
            'text_length': 24,  # tokens that captions are padded to
            'levels': 4,  # scales of the schedule 1 2 4 8
            'drop_path': 0.0,
            'dtype': 'float32',  # of products inside blocks; 'bfloat16' on GPU and TPU
        }
    )
    config.text = ConfigDict(
        {
            'folder': '',  # Hugging Face folder of encoder or vocabulary; '': the shipped one
            'train': True,  # along with the transformer
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
            'max_strength': 0.3,  # largest probability with which a bit is flipped; 0: none
            'per_picture': False,
        }
    )
    config.condition_drop = 0.1  # share of captions dropped, for guidance
    config.reweight_scales = True  # tokens weigh 1/√(h·w) in the loss

    config.data = ConfigDict(
        {
            'source': 'emoji',
            'subset': 'starter',
            'picture_size': 64,  # pixels
            'placed_rate': 0.3,  # of the pictures have a drawn size and place; the rest are large
            'num_workers': 0,  # rendering processes; 0: threads
            'sources': (),  # your own pictures instead, see docs/data.md
            'ratios': ('1.000',),  # buckets; ('all',): 15, from picture_size 256
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
            'ema_decay': 0.995,  # a window of 200 steps; the paper's 0.9999 wants more
        }
    )

    config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1, 'sequence': 1})  # -1: the rest
    config.log_every = 10  # steps
    config.eval_every = 300
    config.eval_batches = 8  # 8 · 16 = 128 held-out pictures
    config.sample_every = 900
    config.checkpoint_every = 300
    config.keep_checkpoints = 2
    config.max_bad_steps = 20  # in a row

    if arg == 'shipped':
        config.steps = 11_000  # 176,000 pictures
        config.transformer.depth = 5
        config.data.subset = 'demo'
        config.data.placed_rate = 0.5  # these are learned last
        config.optimizer.ema_decay = 0.998
        config.eval_every = 500
        config.sample_every = 2000
        config.checkpoint_every = 500
    return config
