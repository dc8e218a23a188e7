"""Fine-tuning: trains a model folder, imported or trained here, further on other images.

    python -m infinity_jax.main --config=configs/finetune.py --config.init_from=FOLDER

`full` (default) trains all weights of the transformer. Dimensions, tokenizer and text encoder are
those of the folder. The first held-out line, at step 0, is the folder's own loss, the one that
`infinity-jax evaluate loss` prints. Your own images: docs/presets.md.

    python -m infinity_jax.main --config=configs/finetune.py:lora --config.init_from=FOLDER

`lora` trains low-rank adapters of the blocks' matrices, 1.1 % of the 2B's parameters, next to
frozen weights: checkpoints are small, and a step has no gradients of the weights. It writes the
merged model, and adapter.safetensors for `infinity-jax generate --adapter`. On a small card:
`--config.lora.base_dtype=int8`.

Hardware and cost: not run at full size. Of the 2B, float32 weights, gradients, both moments and
average are 44 GB without activations; with adapters 5 GB, 3 with an int8 base. A 1024² image is 178
TFLOP, so that 5,000 steps of 64 are 40 hours of one H100 at an assumed MFU of 40 % (computed).

    python -m infinity_jax.main --config=configs/finetune.py:demo_lora

`demo_lora` does so with the shipped demo, on 24 emoji that it was not trained on: three minutes on
two CPU cores. All weights of the demo, on the same machine:

    python -m infinity_jax.main --config=configs/finetune.py --config.init_from=infinity_jax/demo \\
        --config.data.image_size=64 --config.data.ratios="('1.000',)" --config.batch_size=16 \\
        --config.accumulate_steps=1 --config.remat=none
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ('full', 'lora', 'demo_lora')
# What `demo_lora` changes: a small model and a short run on a small set.
DEMO_LORA = {
    'init_from': 'infinity_jax/demo',
    'steps': 300,
    'batch_size': 16,
    'accumulate_steps': 1,
    'remat': 'none',
    'lora.rank': 8,
    'lora.alpha': 8.0,
    'data.subset': 'unseen',
    'data.image_size': 64,
    'data.ratios': ('1.000',),
    'data.num_workers': 0,
    'optimizer.learning_rate': 3e-3,
    'optimizer.warmup_steps': 10,
    'optimizer.final_learning_rate': 1e-4,
    'optimizer.ema_decay': 0.95,  # a window of 20 steps
    'eval_every': 100,
    'sample_every': 300,
    'checkpoint_every': 300,
}


def get_config(arg: str = 'full') -> ConfigDict:
    """`arg` names the variant: 'full', 'lora' or 'demo_lora'."""
    if arg not in VARIANTS:
        raise ValueError(
            f'unknown variant {arg!r} of configs/finetune.py; known: {", ".join(VARIANTS)}'
        )
    lora = arg != 'full'
    config = ConfigDict()
    config.task = 't2i'
    config.run_dir = f'runs/finetune_{arg}'
    config.seed = 0
    config.init_from = ''  # the model folder: required
    config.tokenizer = ''  # '': the one of init_from
    config.steps = 5000
    config.batch_size = 64  # images; 5000 · 64 = 320,000 images seen
    config.accumulate_steps = 16  # 64 / 16 = 4 images at the same time: lower it with more devices
    config.remat = 'full'  # the backward pass recomputes blocks
    config.attention = 'auto'
    config.new_parts = ()  # ('word_embed', 'head') for another tokenizer of the same d
    # Only the fields of the transformer that differ from the folder; placeholders: none.
    config.transformer = ConfigDict(
        {
            'drop_path': 0.0,  # 0.1 in the paper's training from scratch
            'dtype': config_dict.placeholder(str),  # of products inside blocks, such as 'bfloat16'
            # Where these differ from the folder, what fits is kept; docs/presets.md.
            'bits': config_dict.placeholder(int),  # as the tokenizer has
            'text_length': config_dict.placeholder(int),
            'depth': config_dict.placeholder(int),
            'max_scales': config_dict.placeholder(int),
        }
    )
    config.text = ConfigDict({'folder': '', 'train': False})  # '': the encoder of init_from
    config.lora = ConfigDict(
        {
            'rank': 16 if lora else 0,  # 0: all weights are trained
            'alpha': 16.0,  # the update is alpha / rank · A B
            'matrices': ('self_attention', 'cross_attention', 'ffn'),
            'base_dtype': '',  # of the frozen kernels: 'bfloat16', 'int8'; '': of their products
        }
    )
    # As released: one strength per 4 images, the micro-batch of its processes.
    config.self_correction = ConfigDict({'max_strength': 0.3, 'group': 4, 'per_image': False})
    config.condition_drop = 0.1  # keeps guidance working
    config.reweight_scales = True
    config.data = ConfigDict(
        {
            'sources': (),  # your own images, see docs/data.md; (): emoji, as an example
            'subset': 'all',
            'image_size': 1024,  # pixels; 256, 512 and 768 too, whichever the folder was trained at
            'ratios': ('all',),
            'num_workers': 4,
        }
    )
    config.optimizer = ConfigDict(
        {
            # Below the 2e-5 of the paper's last stage, as the batch is 32 times smaller; adapters
            # start at zero and need more.
            'learning_rate': 1e-4 if lora else 1e-5,
            'warmup_steps': 250,
            'decay': 'cosine',
            'final_learning_rate': 1e-6,
            'beta1': 0.9,
            'beta2': 0.97,
            'weight_decay': 0.005,
            'clip_norm': 5.0,
            'mu_dtype': 'float32',  # of the first moment; 'bfloat16' halves its memory
            'ema_decay': 0.999,  # a window of 1000 steps
        }
    )
    config.mesh = ConfigDict({'data': 1, 'fsdp': -1, 'tensor': 1, 'sequence': 1})
    config.log_every = 10
    config.eval_every = 250
    config.eval_batches = 4
    config.sample_every = 1000
    config.checkpoint_every = 250
    config.keep_checkpoints = 2
    config.max_bad_steps = 20
    if arg == 'demo_lora':
        config.update_from_flattened_dict(DEMO_LORA)
    return config
