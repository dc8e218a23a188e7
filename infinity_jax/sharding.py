"""The device mesh and the one table from logical axes to mesh axes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from infinity_jax.errors import UserError
from infinity_jax.ranges import Range, short
from infinity_jax.runtime.accelerators import (
    DevicePeak,
    capability_of,
    lacks_bfloat16,
    name_of,
    peak_of,
)

MOST_DEVICES = 2**20  # along an axis


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1, for all devices that remain."""

    data: int = -1  # copies of the parameters, each with its share of the batch
    fsdp: int = 1  # parameters and batch are split
    tensor: int = 1  # heads and feed-forward are split
    sequence: int = 1  # activations are split along their tokens

    def __post_init__(self):
        check_axes(vars(self), 'config field mesh.')


def check_axes(sizes: Mapping[str, int], where: str) -> None:
    """Checks the sizes of a mesh's axes by themselves, before they are compared with devices.

    Args:
      sizes: devices along each axis; -1: all that remain.
      where: what precedes an axis in messages: 'config field mesh.', or '--mesh ' for the flag.

    Raises:
      UserError: an axis has no devices, or several are -1.
    """
    for name, size in sizes.items():
        if size == 0 or not Range(-1, MOST_DEVICES).has(size):
            raise UserError(
                f'{where}{name} is {short(size)}; wanted {Range(1, MOST_DEVICES)}, or -1 for all '
                'devices that remain'
            )
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(
            f'{where}{" and ".join(free)} are -1, each for all devices that remain; wanted one -1 '
            'at most: set the others to numbers'
        )


# KiB of vector memory for the operands of one operation, twice the default; a chip has 64 MiB (v5p)
# or 128. With it, products of whole sequences with weights come close to the peak.
TPU_OPTIONS = {'xla_tpu_scoped_vmem_limit_kib': '32768'}
# The same for generation, by chip. With less than the default, 16 MiB, programs are shorter,
# compile faster and run a little longer; docs/notebook/plan_generation.md has the figures.
TPU_GENERATION_OPTIONS = {
    'v5e': {'xla_tpu_scoped_vmem_limit_kib': '12288'},
    'v5p': {'xla_tpu_scoped_vmem_limit_kib': '14336'},
    'v6e': {'xla_tpu_scoped_vmem_limit_kib': '12288'},
}
# Products by cuBLASLt alone, which adds bias and residual and applies GELU before it writes. XLA's
# own kernels (Triton) write first, and each has to be tuned on the card when it is compiled.
GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': 'False'}

# Logical axis of a parameter or an activation -> mesh axes. An axis absent here is not split.
RULES: tuple[tuple[str, Any], ...] = (
    ('batch', ('data', 'fsdp')),
    ('length', 'sequence'),
    ('embed', 'fsdp'),  # the width on a parameter's input side
    ('vector', 'fsdp'),  # biases, norms and modulation: one value per channel
    ('heads', 'tensor'),
    ('mlp', 'tensor'),
    ('vocab', 'tensor'),
    ('text', None),
    ('bits', None),
    ('layers', None),
    ('conv_in', 'fsdp'),
    ('conv_out', None),
)


def make_mesh(
    config: MeshConfig = MeshConfig(), devices=None, setting: str = '--config.mesh.{}'
) -> Mesh:
    """A mesh with the axes data, fsdp, tensor and sequence over all (or the given) devices.

    Several slices with slow links between them form the data axis: parameters are split within a
    slice and copied across slices.

    Args:
      config: devices along each axis.
      devices: those of the mesh; None: all.
      setting: see `mesh_sizes`.

    Raises:
      UserError: the axes do not multiply to the number of devices, or a copy of the parameters
        would span TPU slices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).ravel()
    sizes = mesh_sizes(config, devices.size, setting)
    return Mesh(device_grid(sizes, devices), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def deviceless_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The shape of `make_mesh` for a number of devices that need not exist, for planning."""
    sizes = mesh_sizes(config, devices)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))


def mesh_sizes(
    config: MeshConfig, devices: int, setting: str = '--config.mesh.{}'
) -> dict[str, int]:
    """Devices along each axis.

    Args:
      config: the same, with -1 for all that remain.
      devices: the number of all.
      setting: how the user sets an axis, for the advice of an error; {} stands for AXIS=N.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    sizes = dataclasses.asdict(config)
    fixed = math.prod(n for n in sizes.values() if n != -1)
    free = [name for name, n in sizes.items() if n == -1]
    if devices % fixed or (not free and fixed != devices):
        raise UserError(
            f'mesh {sizes} does not cover {devices} devices; make the axes multiply to that '
            f'number, with at most one of them -1{_smaller(sizes, devices, setting)}'
        )
    for name in free:
        sizes[name] = devices // fixed
    return sizes


def _smaller(sizes: dict[str, int], devices: int, setting: str) -> str:
    """Advice on how the largest axis of a preset for many devices would fit fewer devices."""
    name = max(sizes, key=lambda axis: sizes[axis])
    others = math.prod(n for axis, n in sizes.items() if axis != name and n != -1)
    if devices % others or -1 not in sizes.values():
        return ''
    fitting = math.gcd(sizes[name], devices // others)
    return f': {setting.format(f"{name}={fitting}")} does'


def device_grid(sizes: dict[str, int], devices: np.ndarray) -> np.ndarray:
    """Devices as an array with these axes, neighbours close together; slices along 'data'."""
    shape = tuple(sizes.values())
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, list(devices), allow_split_physical_axes=True)
    if sizes['data'] % slices == 0:
        across = tuple(slices if name == 'data' else 1 for name in sizes)
        inside = tuple(n // m for n, m in zip(shape, across, strict=True))
        return mesh_utils.create_hybrid_device_mesh(
            inside, across, list(devices), allow_split_physical_axes=True
        )
    if devices[0].platform == 'tpu':
        raise UserError(
            f'mesh.data is {sizes["data"]} on {slices} TPU slices; make it a multiple of {slices}, '
            'so that fsdp, tensor and sequence stay inside a slice'
        )
    return devices.reshape(shape)


def shardings_of(boxed_shapes: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of (possibly boxed) shapes, from their logical axes.

    A mesh axis that does not divide its dimension splits the last one instead that it divides; if
    there is none, the array is whole along that mesh axis.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed_shapes), RULES)

    def place(shape, spec):
        return NamedSharding(mesh, _moved_shards(shape.shape, spec, mesh))

    return jax.tree.map(place, nn.unbox(boxed_shapes), specs)


def init_sharded(init: Callable[..., Any], mesh: Mesh, *args) -> Any:
    """Runs `init(*args)` with every leaf computed in its own shards; returns unboxed arrays."""
    shardings = shardings_of(jax.eval_shape(init, *args), mesh)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        return jax.jit(lambda *a: nn.unbox(init(*a)), out_shardings=shardings)(*args)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits batches over data and fsdp along their first axis."""
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def read_placed(
    read: Callable[[tuple], np.ndarray],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: NamedSharding | None,
) -> Any:
    """Reads a tensor as a numpy array, or as a jax array whose shards are read one by one.

    Args:
      read: returns the part of the tensor at an index.
      shape: of the whole tensor.
      dtype: of the result.
      sharding: of the jax array; None for numpy.
    """
    if sharding is None:
        return read(()).astype(dtype, copy=False)
    parts: dict[Any, np.ndarray] = {}  # copies on several devices are read once

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        key = tuple(each.indices(size) for each, size in zip(index, shape, strict=False))
        if key not in parts:
            parts[key] = read(index).astype(dtype, copy=False)
        return parts[key]

    return jax.make_array_from_callback(shape, sharding, part)


def in_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `function` to run under the mesh and the logical-axis rules, which tracing reads."""

    @functools.wraps(function)
    def call(*args, **options):
        with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
            return function(*args, **options)

    return call


def is_first_process(mesh: Mesh | None) -> bool:
    """Whether this process writes the files of work that the devices of a mesh share."""
    return mesh is None or jax.process_index() == 0


def to_host(tree: Any, mesh: Mesh) -> Any:
    """Numpy copies of arrays that may be split over the devices of several processes.

    One leaf at a time is gathered on the devices, where a whole model might not fit.
    """
    gather = jax.jit(lambda x: x, out_shardings=replicated(mesh))
    return jax.tree.map(lambda leaf: jax.device_get(gather(leaf)), tree)


def activation_spec(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> PartitionSpec:
    """Mesh axes of an activation, by its logical axes; without a mesh it is not split.

    An axis whose size the mesh axis does not divide is not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return PartitionSpec(*(None for _ in shape))
    spec = nn.logical_to_mesh_axes(axes, RULES) or PartitionSpec()
    return _whole_shards(shape, spec, mesh)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Places an activation by its logical axes; a no-op without a mesh.

    An axis whose size the mesh axis does not divide is left to the compiler.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, axes))


def axis_size(name: str) -> int:
    """Devices along an axis of the current mesh; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[name]


def default_device() -> jax.Device | str | None:
    """The device, or the platform, that is set as JAX's default; None if none is set."""
    return jax.config.jax_default_device  # type: ignore[attr-defined]  # JAX adds it at run time


def target_platform() -> str:
    """'cpu', 'gpu' or 'tpu': the platform for which the current program is traced.

    It is that of the current mesh, so that a host without a TPU can compile for one, or without a
    mesh that of the default device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        return mesh.abstract_device.platform
    device = default_device()
    return device.platform if isinstance(device, jax.Device) else jax.default_backend()


def target_kind() -> str:
    """The kind of device, as named by jax, for which the current program is traced."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        return mesh.abstract_device.device_kind
    device = default_device()
    return (device if isinstance(device, jax.Device) else jax.local_devices()[0]).device_kind


def target_peak() -> DevicePeak | None:
    """Speed and memory of the device for which the current program is traced, if known."""
    return peak_of(target_kind())


def target_capability() -> tuple[int, int] | None:
    """Compute capability of the NVIDIA card for which the current program is traced, if known."""
    return capability_of(target_kind(), jax.local_devices())


def lack_of_bfloat16(mesh: Mesh | None = None) -> str:
    """Why the card multiplies no bfloat16, as text; '' for another device, or an unknown card.

    Args:
      mesh: of the card; None: the one for which the current program is traced.
    """
    kind = target_kind() if mesh is None else mesh.devices.flat[0].device_kind
    return lacks_bfloat16(kind, jax.local_devices())


def compiler_options(mesh: Mesh | AbstractMesh) -> dict[str, str] | None:
    """Compiler options of a training step on this mesh; None: the defaults."""
    device = mesh.abstract_device if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0]
    return {'tpu': TPU_OPTIONS, 'gpu': GPU_OPTIONS}.get(device.platform) if device else None


def generation_compiler_options() -> dict[str, str] | None:
    """Compiler options for the generation program that is being traced; None: the defaults."""
    if target_platform() == 'gpu':
        return GPU_OPTIONS
    name = name_of(target_kind())
    return None if name is None else TPU_GENERATION_OPTIONS.get(name)


def _parts(axis: Any, mesh: Any) -> int:
    """The number of parts into which an entry of a PartitionSpec splits a dimension."""
    names = (axis,) if isinstance(axis, str) else (axis or ())
    return math.prod(mesh.shape[name] for name in names)


def _whole_shards(shape: tuple[int, ...], spec: PartitionSpec, mesh: Any) -> PartitionSpec:
    """`spec` without the mesh axes that do not divide their dimension."""
    axes = tuple(spec) + (None,) * (len(shape) - len(spec))
    return PartitionSpec(
        *(x if n % _parts(x, mesh) == 0 else None for n, x in zip(shape, axes, strict=True))
    )


def _moved_shards(shape: tuple[int, ...], spec: PartitionSpec, mesh: Any) -> PartitionSpec:
    """`spec` with the mesh axes that do not divide their dimension moved to the last that fits."""
    axes = list(_whole_shards(shape, spec, mesh))
    for wanted, kept in zip(spec, tuple(axes), strict=False):
        if wanted == kept:
            continue
        for i in reversed(range(len(shape))):
            if _parts(axes[i], mesh) == 1 and shape[i] % _parts(wanted, mesh) == 0:
                axes[i] = wanted
                break
    return PartitionSpec(*axes)
