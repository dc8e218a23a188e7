"""Released PyTorch weights to our parameters and back; torch itself is not needed.

Every dimension is read off the tensors' shapes. What the table in `torch_table` does not know, or
finds missing or misshapen, is one error that lists everything. Tensors pass one by one.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.config import ModelConfigs, TokenizerConfig, TransformerConfig, pixels_per_token
from infinity_jax.convert import names as torch_table
from infinity_jax.convert.dimensions import Tensors, read_tokenizer_config, read_transformer_config
from infinity_jax.convert.names import Entry, Naming
from infinity_jax.convert.state_dict import open_tokenizer, open_transformer
from infinity_jax.errors import UserError
from infinity_jax.weights.model_folder import LoadedModel
from infinity_jax.weights.part_weights import Params, PartConfig, cast, flat_shapes, part_shapes
from infinity_jax.weights.safetensors_writer import Spec
from infinity_jax.weights.weight_files import name_problems

TOKEN_STRIDE = 16  # pixels per transformer token along an edge, in every released pair


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the tensors of one part correspond.

    Attributes:
      shapes: our dotted path -> shape, layers stacked.
      entries: one for each torch tensor.
      buffers: torch name -> (name of the weight that it is made from, how).
      ignored: torch names that are passed over.
    """

    shapes: Mapping[str, tuple[int, ...]]
    entries: tuple[Entry, ...]
    buffers: Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: PartConfig, naming: Naming = Naming()) -> 'Plan':
        """The plan of a transformer or a tokenizer."""
        shapes = flat_shapes(part_shapes(config))
        if isinstance(config, TokenizerConfig):
            entries = torch_table.entries(torch_table.TOKENIZER, shapes)
            buffers = torch_table.buffer_names(torch_table.TOKENIZER_BUFFERS, 1)
            return cls(shapes, tuple(entries), buffers)
        entries = torch_table.entries(torch_table.TRANSFORMER, shapes, naming)
        buffers = torch_table.buffer_names(torch_table.TRANSFORMER_BUFFERS, config.depth, naming)
        return cls(shapes, tuple(entries), buffers, torch_table.TRANSFORMER_IGNORED)

    def problems(self, tensors: Tensors) -> list[str]:
        """Every missing, unknown and misshapen name, and buffers that hold what they should not."""
        passed = (*self.buffers, *self.ignored)
        found = {n: tuple(t.shape) for n, t in tensors.items() if n not in passed}
        wanted = {e.torch: e.shape for e in self.entries}
        lines = name_problems(wanted, found)
        for name, (beside, make) in self.buffers.items():
            if name in tensors and found.get(beside) == wanted[beside]:
                constant, held = make(tensors[beside].read()), tensors[name].read()
                if held.shape != constant.shape or not np.array_equal(held, constant):
                    lines.append(f'buffer {name} is not the constant that the released code makes')
        return lines

    def our_specs(self, tensors: Tensors, dtype: Any = None) -> dict[str, Spec]:
        """Our path -> shape and dtype; without `dtype` the one that holds every layer's."""
        kinds = collections.defaultdict(set)
        for entry in self.entries:
            kinds[entry.ours].add(tensors[entry.torch].dtype)
        return {
            ours: Spec(shape, np.dtype(dtype or np.result_type(*kinds[ours])))
            for ours, shape in self.shapes.items()
        }

    def read(
        self, tensors: Tensors, specs: Mapping[str, Spec]
    ) -> Iterator[tuple[str, int | None, np.ndarray]]:
        """Our path, layer and array of each tensor in turn."""
        for entry in self.entries:
            array = entry.transform.to_ours(tensors[entry.torch].read())
            yield entry.ours, entry.layer, cast(entry.torch, array, specs[entry.ours].dtype)

    def torch_specs(self, dtype_of: Callable[[str, str], Any]) -> dict[str, Spec]:
        """Torch name -> shape and dtype, buffers included.

        Args:
          dtype_of: (torch name, our path) -> dtype.
        """
        specs = {e.torch: Spec(e.shape, np.dtype(dtype_of(e.torch, e.ours))) for e in self.entries}
        ours = {entry.torch: entry.ours for entry in self.entries}
        for name, (beside, make) in self.buffers.items():
            made = make(np.empty(specs[beside].shape, specs[beside].dtype))
            same = made.dtype == specs[beside].dtype
            dtype = np.dtype(dtype_of(name, ours[beside])) if same else made.dtype
            specs[name] = Spec(made.shape, dtype)
        return specs

    def write(
        self, read: Callable[[str, int | None], np.ndarray], specs: Mapping[str, Spec]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Torch name and array of each tensor in turn, each buffer behind its weight.

        Args:
          read: (our path, layer) -> array.
          specs: as `torch_specs` gives them.
        """
        made = collections.defaultdict(list)
        for name, (beside, make) in self.buffers.items():
            made[beside].append((name, make))
        for entry in self.entries:
            array = entry.transform.to_torch(read(entry.ours, entry.layer))
            array = cast(entry.torch, array, specs[entry.torch].dtype)
            yield entry.torch, np.ascontiguousarray(array)
            for name, make in made[entry.torch]:
                yield name, make(array).astype(specs[name].dtype)


def import_tensors(tensors: Tensors, plan: Plan, dtype: Any = np.float32) -> Params:
    """Reads tensors into our tree, in memory; `dtype` None keeps the file's.

    Raises:
      UserError: everything that is wrong with them, at once.
    """
    problems = plan.problems(tensors)
    if problems:
        raise UserError('; '.join(problems))
    specs = plan.our_specs(tensors, dtype)
    arrays = {name: np.empty(spec.shape, spec.dtype) for name, spec in specs.items()}
    for name, layer, array in plan.read(tensors, specs):
        arrays[name][... if layer is None else layer] = array
    return unflatten_dict(arrays, sep='.')


def to_torch(
    config: PartConfig, params: Params, naming: Naming = Naming()
) -> dict[str, np.ndarray]:
    """The state dict that the released code loads, in the arrays' own dtypes.

    A tokenizer's is found under `vae` in torch files.
    """
    flat = flatten_dict(params, sep='.')
    plan = Plan.of(config, naming)
    specs = plan.torch_specs(lambda _, ours: flat[ours].dtype)
    return dict(plan.write(lambda ours, layer: layer_of(flat[ours], layer), specs))


def layer_of(array: Any, layer: int | None) -> np.ndarray:
    """One layer of a stacked array, or all of one that is not; gathered from its shards."""
    return np.asarray(array if layer is None else array[layer])


def load_torch_tokenizer(
    path: str | Path, *, ema: bool = False, dtype: Any = np.float32, **overrides: Any
) -> tuple[TokenizerConfig, Params]:
    """Reads a released tokenizer; `dtype` None keeps the file's."""
    tensors = open_tokenizer(path, ema)
    try:
        config = read_tokenizer_config(tensors, **overrides)
        return config, import_tensors(tensors, Plan.of(config), dtype)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def load_torch_transformer(
    path: str | Path,
    tokenizer_bits: int | None = None,
    *,
    ema: bool = False,
    dtype: Any = np.float32,
) -> tuple[TransformerConfig, Params, Naming]:
    """Reads a released transformer; `dtype` None keeps the file's."""
    tensors = open_transformer(path, ema)
    try:
        config, naming = read_transformer_config(tensors, tokenizer_bits)
        return config, import_tensors(tensors, Plan.of(config, naming), dtype), naming
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def check_pair(
    transformer: TransformerConfig,
    tokenizer: TokenizerConfig,
    path: str | Path,
    token_stride: int = TOKEN_STRIDE,
) -> None:
    """Raises `UserError` where a tokenizer's stride is not that of the transformer's tokens.

    Args:
      path: of the tokenizer, for the message.
      token_stride: pixels per transformer token along an edge.
    """
    stride = pixels_per_token(transformer, tokenizer)
    if stride != token_stride:
        folded = ' folded 2×2' if transformer.spatial_patchify else ''
        raise UserError(
            f'{path}: codes of stride {tokenizer.stride}{folded} put a token on {stride} pixels, '
            f'the transformer expects {token_stride}; use its own tokenizer'
        )


def load_torch_pair(
    transformer_path: str | Path,
    tokenizer_path: str | Path,
    *,
    ema: bool = False,
    dtype: Any = np.float32,
    token_stride: int = TOKEN_STRIDE,
    **overrides: Any,
) -> LoadedModel:
    """Reads a transformer and its tokenizer, refusing a pair that does not fit.

    `overrides` replace tokenizer fields that shapes cannot show, such as norm_groups.
    """
    tokenizer_config, tokenizer_params = load_torch_tokenizer(
        tokenizer_path, dtype=dtype, **overrides
    )
    config, params, _ = load_torch_transformer(
        transformer_path, tokenizer_config.bits, ema=ema, dtype=dtype
    )
    check_pair(config, tokenizer_config, tokenizer_path, token_stride)
    configs = ModelConfigs(transformer=config, tokenizer=tokenizer_config)
    return LoadedModel(configs, params, tokenizer_params)
