"""What generation does with the memory that there is, decided before a weight is read.

On an accelerator that is too small for the whole model, the cheapest way that fits is taken: first
what changes no image, that is, fewer images at once and a text encoder that waits on the host; then
weights in 8 bits, then a cache in 8 bits. What a flag asks for is never changed.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from infinity_jax.config import (
    AUTO,
    ModelConfigs,
    QuantizationConfig,
    pixels_per_token,
    required,
)
from infinity_jax.errors import UserError
from infinity_jax.inference.memory import (
    GB,
    MemoryEstimate,
    describe,
    estimate_memory,
    on_one_device,
)
from infinity_jax.runtime.accelerators import lacks_bfloat16
from infinity_jax.runtime.host_memory import free_bytes

PRINT_ABOVE = GB  # nothing is printed about the memory of smaller models that fit as they are
TEXT_PLACES = (AUTO, 'device', 'host')


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """How generation fits into memory.

    Attributes:
      batch: images per program call.
      offload_text: whether the text encoder leaves the device between calls.
      quantization: the formats of weights and cache, none of them 'auto'.
    """

    batch: int
    offload_text: bool
    quantization: QuantizationConfig = QuantizationConfig()


class _Calls(NamedTuple):
    """The program calls that memory is planned for, see `plan_memory`."""

    configs: ModelConfigs
    max_batch: int
    guided: bool
    text_length: int | None

    def estimate(
        self,
        batch: int,
        formats: QuantizationConfig,
        on_cpu: bool = False,
        cpu_mesh: Mapping[str, int] = MappingProxyType({}),
    ) -> MemoryEstimate:
        """The memory of a call for `batch` images."""
        return estimate_memory(
            self.configs,
            batch,
            guided=self.guided,
            text_length=self.text_length,
            on_cpu=on_cpu,
            cpu_mesh=cpu_mesh,
            quantization=formats,
        )

    @property
    def images(self) -> str:
        """What each of them is."""
        transformer = required(self.configs.transformer, 'transformer')
        stride = pixels_per_token(transformer, required(self.configs.tokenizer, 'tokenizer'))
        height, width = required(self.configs.schedule, 'schedule').image_size(stride)
        return f'{height} x {width} pixels{"" if self.guided else " without guidance"}'


class _Candidate(NamedTuple):
    """A plan, and the memory that a device needs for it."""

    plan: MemoryPlan
    estimate: MemoryEstimate

    @property
    def bytes(self) -> int:
        return self.estimate.total(self.plan.offload_text)


def plan_memory(
    configs: ModelConfigs,
    max_batch: int,
    mesh: Mesh | None = None,
    quantization: QuantizationConfig = QuantizationConfig(),
    *,
    guided: bool = True,
    text_length: int | None = None,
) -> MemoryPlan:
    """Plans for the available memory; for large models one line on standard error says how.

    Args:
      configs: configurations and schedule.
      max_batch: images per program call, at most.
      mesh: the devices that share the work; None: the default device.
      quantization: the formats of weights and cache. 'auto' is 'int8' on a single accelerator that
        is too small for 'full', and 'full' elsewhere.
      guided, text_length: of the calls, see `estimate_memory`.

    Raises:
      UserError: not even one image fits, or the text encoder cannot wait on the host.
    """
    device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
    calls = _Calls(configs, max_batch, guided, text_length)
    room = free_bytes(device)
    fits = lambda candidate: room is None or candidate.bytes <= room
    last = None
    for last in _candidates(calls, mesh, quantization, device):
        if fits(last):
            _report(last, calls, quantization, room)
            return last.plan
    assert room is not None and last is not None  # otherwise the first candidate fits
    smaller = _allowing_8_bits(quantization)
    others = _candidates(calls, mesh, smaller, device)
    raise UserError(_refusal(last, calls, device, room, any(map(fits, others))))


def _candidates(
    calls: _Calls, mesh: Mesh | None, quantization: QuantizationConfig, device: Any
) -> Iterator[_Candidate]:
    """Plans to try, the cheapest first."""
    on_host = device.platform == 'cpu'  # all devices of a mesh then share one memory
    axes = {} if mesh is None else dict(mesh.shape)
    sizes, cpu_mesh = ({}, axes) if on_host else (axes, {})
    shares = sizes.get('data', 1) * sizes.get('fsdp', 1)
    alone = mesh is None and not on_host
    for formats in _formats(quantization, alone):
        for offload in _text_places(calls.configs, alone, mesh is not None):
            for batch in _halvings(calls.max_batch, shares):
                share = calls.estimate(-(-batch // shares), formats, on_host, cpu_mesh)
                estimate = on_one_device(share, sizes)
                yield _Candidate(MemoryPlan(batch, offload, formats), estimate)


def _formats(quantization: QuantizationConfig, lossy: bool) -> list[QuantizationConfig]:
    """Formats without 'auto' to try: 'full' in its place, then 8-bit weights, then the cache."""
    former = quantization.former_unguided_scales
    automatic = [name for name in ('weights', 'cache') if getattr(quantization, name) == AUTO]
    full: dict[str, Any] = dict.fromkeys(automatic, 'full')
    formats = [dataclasses.replace(quantization, **full, unguided_scales=former)]
    for name in automatic if lossy else ():
        full[name] = 'int8'
        formats.append(dataclasses.replace(quantization, **full, unguided_scales=former))
    return formats


def _text_places(configs: ModelConfigs, alone: bool, on_mesh: bool) -> tuple[bool, ...]:
    """Whether to offload the text encoder, in the order to try; on a CPU there is no other place.

    Raises:
      UserError: it is to wait on the host, and several devices share the work.
    """
    asked = configs.text_encoder
    if asked not in TEXT_PLACES:
        raise UserError(f'text_encoder is {asked!r}; wanted {", ".join(TEXT_PLACES)}')
    if asked == 'host' and on_mesh:
        raise UserError("text_encoder is 'host', which is for one device; leave it to 'auto'")
    if not alone or asked == 'device':
        return (False,)
    return (True,) if asked == 'host' else (False, True)


def _halvings(batch: int, shares: int) -> list[int]:
    """Batches to try: `batch` and its halves, down to one image per share."""
    batches = [max(batch, 1)]
    while batches[-1] > shares:
        batches.append(max(batches[-1] // 2, shares))
    return batches


def _allowing_8_bits(quantization: QuantizationConfig) -> QuantizationConfig:
    return dataclasses.replace(
        quantization,
        weights=AUTO if quantization.weights == 'full' else quantization.weights,
        cache=AUTO if quantization.cache == 'full' else quantization.cache,
        unguided_scales=quantization.former_unguided_scales,
    )


def _report(
    chosen: _Candidate,
    calls: _Calls,
    asked: QuantizationConfig,
    room: int | None,
) -> None:
    """Prints the memory of a large model, and what was chosen so that it fits."""
    plan, estimate = chosen
    choices = []
    if plan.offload_text and calls.configs.text_encoder == AUTO:
        choices.append('the text encoder waits on the host (--text-encoder device: not)')
    for name, place in (('weights', "the blocks' weights are"), ('cache', 'the cache is')):
        if getattr(asked, name) == AUTO and getattr(plan.quantization, name) == 'int8':
            choices.append(f'{place} in 8 bits, with other images (--{name} full: not)')
    if chosen.bytes <= PRINT_ABOVE and not choices:
        return
    line = f'memory: about {describe(estimate, plan.offload_text)}; {plan.batch} of '
    line += f'{calls.images} at once; there is {_gigabytes(room)}'
    if choices:
        plain = calls.estimate(plan.batch, _formats(asked, False)[0])
        line += f' and otherwise {_gigabytes(plain.total())} needed, so {" and ".join(choices)}'
    print(line, file=sys.stderr)


def _refusal(least: _Candidate, calls: _Calls, device: Any, room: int, in_8_bits: bool) -> str:
    """Why nothing fits, given the plan that needs the least memory."""
    plan, estimate = least
    advice = 'generate a smaller --budget'
    if least.bytes - estimate.work >= room:
        advice = 'use a smaller model'
    in_float32 = required(calls.configs.transformer, 'transformer').dtype == 'float32'
    if in_float32 and not lacks_bfloat16(device.device_kind, [device]):
        advice += ', use --dtype bfloat16'
    if in_8_bits:
        advice = f"allow 8 bits (weights and cache 'auto': --weights auto --cache auto), {advice}"
    owner = 'this machine' if device.platform == 'cpu' else device
    return (
        f'{plan.batch} of {calls.images} at once would need about '
        f'{describe(estimate, plan.offload_text)}, but {owner} has {_gigabytes(room)} free; '
        f'{advice}, or use more devices'
    )


def _gigabytes(count: int | None) -> str:
    return 'unknown' if count is None else f'{count / GB:.1f} GB'
