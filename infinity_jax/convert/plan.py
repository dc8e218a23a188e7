"""Converts released PyTorch weights to our parameters and back, without torch.

All dimensions are inferred from the tensors' shapes. Tensors that the table in `names` does not
have, or that are missing or misshapen, are listed in one error. Tensors are converted one by one.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from infinity_jax.config import ModelConfigs, TokenizerConfig, TransformerConfig, pixels_per_token
from infinity_jax.convert import names as name_table
from infinity_jax.convert.dimensions import Tensors, read_tokenizer_config, read_transformer_config
from infinity_jax.convert.names import Entry, Naming
from infinity_jax.convert.state_dict import open_tokenizer, open_transformer
from infinity_jax.errors import UserError
from infinity_jax.weights.integrity import check_values
from infinity_jax.weights.model_folder import LoadedModel
from infinity_jax.weights.part_weights import Params, PartConfig, cast, flat_shapes, part_shapes
from infinity_jax.weights.safetensors_writer import Spec
from infinity_jax.weights.weight_files import name_problems

TOKEN_STRIDE = 16  # pixels per transformer token along an edge, in every released pair


@dataclasses.dataclass(frozen=True)
class Plan:
    """The correspondence of torch tensors and our parameters for one part.

    Attributes:
      shapes: our dotted path -> shape, layers stacked.
      entries: one per torch tensor.
      buffers: torch name -> (name of the weight that it is computed from, function).
      ignored: torch names that are skipped.
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
            entries = name_table.entries(name_table.TOKENIZER, shapes)
            buffers = name_table.buffer_names(name_table.TOKENIZER_BUFFERS, 1)
            return cls(shapes, tuple(entries), buffers)
        entries = name_table.entries(name_table.TRANSFORMER, shapes, naming)
        buffers = name_table.buffer_names(name_table.TRANSFORMER_BUFFERS, config.depth, naming)
        return cls(shapes, tuple(entries), buffers, name_table.TRANSFORMER_IGNORED)

    def problems(self, tensors: Tensors) -> list[str]:
        """All missing, unknown, misshapen and mistyped tensors, and buffers with wrong values."""
        skipped = (*self.buffers, *self.ignored)
        found = {n: tuple(t.shape) for n, t in tensors.items() if n not in skipped}
        wanted = {e.torch: e.shape for e in self.entries}
        lines = name_problems(wanted, found)
        lines += [
            f'{name} has whole numbers of type {tensors[name].dtype}, wanted floats'
            for name in wanted
            if name in found and tensors[name].dtype.kind in 'iub'
        ]
        for name, (weight, make) in self.buffers.items():
            if name in tensors and found.get(weight) == wanted[weight]:
                constant, held = make(tensors[weight].read()), tensors[name].read()
                if held.shape != constant.shape or not np.array_equal(held, constant):
                    lines.append(f'buffer {name} is not the constant that the released code makes')
        return lines

    def our_specs(self, tensors: Tensors, dtype: Any = None) -> dict[str, Spec]:
        """Our path -> shape and dtype; without `dtype`, one that fits all layers."""
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
        """Yields our path, layer and array of each tensor; refuses NaN and infinity."""
        for entry in self.entries:
            stored = tensors[entry.torch].read()
            if problem := check_values(entry.torch, stored):
                raise UserError(f'{problem}: the file is damaged, copy it again')
            array = entry.transform.to_ours(stored)
            yield entry.ours, entry.layer, cast(entry.torch, array, specs[entry.ours].dtype)

    def torch_specs(self, dtype_of: Callable[[str, str], Any]) -> dict[str, Spec]:
        """Torch name -> shape and dtype, buffers included.

        Args:
          dtype_of: (torch name, our path) -> dtype.
        """
        specs = {e.torch: Spec(e.shape, np.dtype(dtype_of(e.torch, e.ours))) for e in self.entries}
        ours = {entry.torch: entry.ours for entry in self.entries}
        for name, (weight, make) in self.buffers.items():
            made = make(np.empty(specs[weight].shape, specs[weight].dtype))
            same = made.dtype == specs[weight].dtype
            dtype = np.dtype(dtype_of(name, ours[weight])) if same else made.dtype
            specs[name] = Spec(made.shape, dtype)
        return specs

    def write(
        self, read: Callable[[str, int | None], np.ndarray], specs: Mapping[str, Spec]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yields torch name and array of each tensor, a buffer after its weight.

        Args:
          read: (our path, layer) -> array.
          specs: of `torch_specs`.
        """
        made = collections.defaultdict(list)
        for name, (weight, make) in self.buffers.items():
            made[weight].append((name, make))
        for entry in self.entries:
            array = entry.transform.to_torch(read(entry.ours, entry.layer))
            array = cast(entry.torch, array, specs[entry.torch].dtype)
            yield entry.torch, np.ascontiguousarray(array)
            for name, make in made[entry.torch]:
                yield name, make(array).astype(specs[name].dtype)


def import_tensors(tensors: Tensors, plan: Plan, dtype: Any = np.float32) -> Params:
    """Reads tensors into our tree, in memory; `dtype` None keeps the file's.

    Raises:
      UserError: with all problems of the tensors at once.
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
    """The state dict that the released code loads, with the arrays' dtypes.

    In torch files, a tokenizer's is nested under `vae`.
    """
    flat = flatten_dict(params, sep='.')
    plan = Plan.of(config, naming)
    specs = plan.torch_specs(lambda _, ours: flat[ours].dtype)
    return dict(plan.write(lambda ours, layer: layer_of(flat[ours], layer), specs))


def layer_of(array: Any, layer: int | None) -> np.ndarray:
    """One layer of a stacked array, or a whole array that is not stacked, as numpy."""
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
    """Raises `UserError` if a tokenizer's stride differs from that of the transformer's tokens.

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
