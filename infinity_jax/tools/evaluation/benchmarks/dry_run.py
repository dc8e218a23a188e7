"""Counts, disk space and time of a benchmark run, before it is started."""

import jax

from infinity_jax.config import required
from infinity_jax.tools.bench.stage import large_product, timed
from infinity_jax.tools.evaluation.benchmarks.plan import Plan
from infinity_jax.training import flops

GB, MB = 10**9, 10**6
# Bytes per pixel of photographs in these formats; drawings and plain backgrounds take less.
BYTES_PER_PIXEL = {'.png': 1.7, '.jpg': 0.45}
REPEATS = 3  # of the product that measures the device


def dry_run_lines(plan: Plan) -> list[str]:
    """The lines for the user: images, files, disk space, time."""
    items, num = plan.benchmark.items, plan.benchmark.num
    remaining = [item for item in items if not plan.is_complete(item)]
    height, width = plan.image_size
    lines = [
        f'{plan.benchmark.name}: {len(items)} prompts, {num} images each: {len(items) * num} of '
        f'{width} x {height} pixels (width x height); {len(remaining) * num} are not there yet',
        f'disk: about {size(_disk(plan, len(remaining)))} more (estimate for photographs)',
    ]
    if remaining:
        lines.append(_time_line(plan, len(remaining) * num))
    return lines


def _disk(plan: Plan, prompts: int) -> float:
    """Bytes of the files of so many prompts; those that are there tell the size of the others."""
    item = plan.benchmark.items[0]
    pixels = plan.image_size[0] * plan.image_size[1] * plan.benchmark.num
    existing = [
        path.stat().st_size
        for each in plan.benchmark.items
        for path in (plan.out / name for name in each.files)
        if path.exists()
    ]
    if existing:
        per_prompt = sum(existing) / len(existing) * len(item.files)
    else:
        ending = item.files[0][item.files[0].rindex('.') :]
        per_prompt = pixels * BYTES_PER_PIXEL[ending]
    if item.original is not None:
        per_prompt += pixels * BYTES_PER_PIXEL['.png']
    return per_prompt * prompts


def _time_line(plan: Plan, images: int) -> str:
    """The time if all work ran like one large matrix product, which is measured."""
    transformer = required(plan.configs.transformer, 'transformer')
    counted = flops.generation(
        transformer,
        required(plan.configs.tokenizer, 'tokenizer'),
        required(plan.configs.text, 'text encoder'),
        required(plan.configs.schedule, 'schedule'),
        1,
        plan.options.text_length or transformer.text_length,
        guided=plan.options.sampling.static(required(plan.configs.schedule, 'schedule')).guided,
    )
    product, work = large_product(transformer.dtype)
    timed(product)  # compiles it
    rate = work / min(timed(product)[0] for _ in range(REPEATS))
    mesh = plan.options.mesh
    devices = jax.process_count() * (1 if mesh is None else mesh.devices.size)
    seconds = images * counted.total / (rate * devices)
    kind = jax.local_devices()[0].device_kind
    return (
        f'time: at least {duration(seconds)} on {devices} x {kind}: {counted.total / 1e12:.3g} '
        f'TFLOP per image, at the {rate / 1e12:.3g} TFLOP/s of a large matrix product (measured); '
        'expect two to four times as much'
    )


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    return f'{count / GB:.2f} GB' if count >= GB / 10 else f'{count / MB:.2f} MB'


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, length in (('days', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * length:
            return f'{seconds / length:.1f} {unit}'
    return f'{seconds:.1f} s'
