"""The results of a bench run as a table, JSON and a plot."""

import dataclasses
import json
import pathlib
import platform
from typing import Any

import jax

from infinity_jax.runtime.cpu_devices import cores
from infinity_jax.tools.bench.stage import Measured
from infinity_jax.tools.bench.workload import Workload, schedule_of

LEGEND = (
    'seconds: median of the rounds; bare: the matrix products of the stage alone; of bare: their '
    'share of the time; by CPU: of the processor time; of peak: FLOP/s over those of the '
    'large product; first: the first call'
)


def report_of(what: str, workload: Workload, measured: Measured) -> dict[str, Any]:
    """All figures by name; seconds, bytes and FLOP/s."""
    stages = {name: result.to_json() for name, result in measured.stages.items()}
    seconds = sum(stage['seconds'] for stage in stages.values())
    tokens = schedule_of(workload).num_tokens
    device = jax.local_devices()[0]
    report = {
        'what': what,
        'workload': dataclasses.asdict(workload),
        'device': f'{device.device_kind}, {platform.machine()}, {cores()} cores'
        if device.platform == 'cpu'
        else device.device_kind,
        'jax': jax.__version__,
        'stages': stages,
        'seconds': seconds,
        'first_seconds': sum(stage['first_seconds'] for stage in stages.values()),
        'images_per_second': workload.batch / seconds,
        'pictures_per_second': workload.batch / seconds,  # the former name
        'peak_flops': measured.peak_flops,
        'peak_memory': measured.peak_memory,
    }
    of_transformer = stages.get('transformer', stages.get('train'))
    if of_transformer:
        report['tokens_per_second'] = workload.batch * tokens / of_transformer['seconds']
    return report


def table(report: dict[str, Any]) -> str:
    """The figures as text, one row per stage."""
    lines = [
        f'{report["what"]}: {report["device"]}, jax {report["jax"]}; the large product ran at '
        f'{report["peak_flops"] / 1e9:.0f} GFLOP/s',
        f'{"stage":<12}{"seconds":>9}{"fastest":>9}{"slowest":>9}{"bare":>9}{"of bare":>9}'
        f'{"by CPU":>9}{"of peak":>9}{"first":>9}',
    ]
    for name, stage in report['stages'].items():
        fastest, slowest = stage['spread_seconds']
        lines.append(
            f'{name:<12}{stage["seconds"]:>9.3f}{fastest:>9.3f}{slowest:>9.3f}'
            f'{stage["bare_seconds"]:>9.3f}{stage["fraction_of_bare"]:>9.1%}'
            f'{stage["fraction_of_bare_cpu"]:>9.1%}{stage["fraction_of_peak"]:>9.1%}'
            f'{stage["first_seconds"]:>9.2f}'
        )
    rate = f'{report["images_per_second"]:.3g} images/s'
    if 'tokens_per_second' in report:
        rate += f', {report["tokens_per_second"]:.4g} tokens/s'
    lines.append(
        f'all stages {report["seconds"]:.3f} s, {rate}; first call of all '
        f'{report["first_seconds"]:.2f} s; peak memory {report["peak_memory"] / 1e9:.2f} GB'
    )
    lines.append(LEGEND)
    return '\n'.join(lines)


def write_json(path: str, report: dict[str, Any]) -> None:
    """Writes all figures."""
    pathlib.Path(path).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


def write_plot(path: str, report: dict[str, Any]) -> None:
    """Draws the time of each stage and of its bare products as bars."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(1.5 + 2 * len(report['stages']), 3.5))
    for i, stage in enumerate(report['stages'].values()):
        fastest, slowest = stage['spread_seconds']
        error = [[stage['seconds'] - fastest], [slowest - stage['seconds']]]
        axes.bar(i - 0.2, stage['seconds'], 0.4, yerr=error, color='tab:blue')
        axes.bar(i + 0.2, stage['bare_seconds'], 0.4, color='tab:gray')
        axes.text(i, stage['seconds'], f'{stage["fraction_of_bare"]:.0%}', ha='center', va='bottom')
    axes.set_xticks(range(len(report['stages'])), list(report['stages']))
    axes.set_ylabel('seconds')
    axes.set_title('blue: the stage; grey: its bare products', fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
