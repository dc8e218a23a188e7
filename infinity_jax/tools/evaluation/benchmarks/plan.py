"""What a benchmark run will generate, decided before any weight is read."""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Mapping
from typing import Any

from infinity_jax.config import ModelConfigs, pixels_per_token, required
from infinity_jax.errors import UserError
from infinity_jax.inference.loading import read_for_generation
from infinity_jax.inference.memory_plan import plan_memory
from infinity_jax.inference.pipeline import MAX_BATCH
from infinity_jax.runtime.host_texts import from_first_process
from infinity_jax.runtime.hub import local_folder
from infinity_jax.tools.evaluation.benchmarks.image_files import has_text, is_whole
from infinity_jax.tools.evaluation.benchmarks.layout import GRID_EDGE, Benchmark, Item, digest
from infinity_jax.tools.evaluation.benchmarks.settings import (
    FILE,
    BenchmarkOptions,
    devices,
    model_digest,
    read_run,
    versions,
)

AT_ONCE = 'images_at_once'


@dataclasses.dataclass(frozen=True)
class Plan:
    """A benchmark with everything that decides its files.

    Attributes:
      benchmark: prompts and layout.
      texts: what the model reads for each prompt.
      options: all settings.
      out: the folder.
      folder: of the model.
      configs: of the model, with the token grids of the images.
      images_at_once: images per program call.
    """

    benchmark: Benchmark
    texts: Mapping[str, str]
    options: BenchmarkOptions
    out: pathlib.Path
    folder: pathlib.Path
    configs: ModelConfigs
    images_at_once: int

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of an image in pixels."""
        transformer = required(self.configs.transformer, 'transformer')
        tokenizer = required(self.configs.tokenizer, 'tokenizer')
        schedule = required(self.configs.schedule, 'schedule')
        return schedule.image_size(pixels_per_token(transformer, tokenizer))

    @property
    def prompts_at_once(self) -> int:
        """Prompts of a group, whose images are always generated together.

        So no image depends on which ones were there before, not even in its last bit.
        """
        prompts = min(self.images_at_once // self.benchmark.num, len(self.benchmark.items))
        return max(prompts, 1)

    @property
    def file_size(self) -> tuple[int, int]:
        """(height, width) of a file, which may show several images."""
        edge = GRID_EDGE if self.benchmark.is_grid else 1
        return edge * self.image_size[0], edge * self.image_size[1]

    def text_of(self, item: Item) -> str:
        """What the model reads for a prompt."""
        return self.texts.get(item.prompt, item.prompt)

    def groups(self, process: int = 0, processes: int = 1) -> list[range]:
        """Numbers of the prompts of each group; processes take turns."""
        count = len(self.benchmark.items)
        starts = range(process * self.prompts_at_once, count, processes * self.prompts_at_once)
        return [range(start, min(start + self.prompts_at_once, count)) for start in starts]

    def is_complete(self, item: Item) -> bool:
        """Whether all files of a prompt are there and whole."""
        files = all(is_whole(self.out / file, self.file_size) for file in item.files)
        return files and all(has_text(self.out / name, text) for name, text in item.texts)


def plan_run(
    benchmark: Benchmark, options: BenchmarkOptions, out: pathlib.Path, texts: Mapping[str, str]
) -> Plan:
    """Reads the model's configurations, and decides which images are generated together.

    Args:
      benchmark: prompts and layout.
      options: all settings.
      out: the folder.
      texts: rewritten prompts; a prompt that is absent is used as it is.

    Raises:
      UserError: no such model, too little memory, or an image size that the model or the judge
        cannot use.
    """
    folder = local_folder(options.checkpoint, options.revision)
    configs = read_for_generation(folder, mesh=options.mesh, **options.model)
    at_once = None
    if options.max_batch is None and (out / FILE).exists():
        at_once = read_run(out).get(AT_ONCE)  # memory was free then, and may be taken now
    if not isinstance(at_once, int) or at_once < 1:
        at_once = _fitting(configs, options, len(benchmark.items) * benchmark.num)
    at_once = int(from_first_process([str(at_once)])[0])
    plan = Plan(benchmark, texts, options, out, folder, configs, at_once)
    height, width = plan.image_size
    if benchmark.is_grid and height != width:
        raise UserError(
            f'{benchmark.name} wants squares, since its judge cuts a grid of them; the image size '
            f'is {width} x {height}: leave out the ratio'
        )
    return plan


def _fitting(configs: ModelConfigs, options: BenchmarkOptions, images: int) -> int:
    """Images per program call that fit into memory."""
    shares = 1 if options.mesh is None else options.mesh.shape['data'] * options.mesh.shape['fsdp']
    most = min((options.max_batch or MAX_BATCH) * shares, images)
    with contextlib.redirect_stderr(io.StringIO()):  # loading prints the same line again
        return plan_memory(
            configs,
            most,
            options.mesh,
            options.quantization,
            guided=options.sampling.guided,
            text_length=options.text_length,
        ).batch


def settings_of(plan: Plan, prompts: str, rewritten: str | None) -> dict[str, Any]:
    """The content of run.json.

    Args:
      plan: of the run.
      prompts: path of the prompts.
      rewritten: path of the rewritten prompts, if there are any.
    """
    options, benchmark = plan.options, plan.benchmark
    return {
        'benchmark': benchmark.name,
        'prompts': {
            'file': str(pathlib.Path(prompts).absolute()),
            'sha256': benchmark.digest,
            'count': len(benchmark.items),
        },
        'rewritten': {
            'file': None if rewritten is None else str(pathlib.Path(rewritten).absolute()),
            'sha256': None if rewritten is None else digest(sorted(plan.texts.items())),
        },
        'images_per_prompt': benchmark.num,
        'model': {
            'name': options.checkpoint,
            'revision': options.revision,
            'sha256': model_digest(plan.folder),
            'dtype': required(plan.configs.transformer, 'transformer').dtype,
            'text_dtype': plan.configs.text_products,
            'attention': options.model.get('attention'),
            'text_length': options.text_length,
        },
        'image_size': list(plan.image_size),
        'sampling': dataclasses.asdict(options.sampling),
        'quantization': dataclasses.asdict(options.quantization),
        'seed': options.seed,
        'seeds': options.seeds,
        AT_ONCE: plan.images_at_once,
        'versions': versions(),
        'devices': devices(options.mesh),
    }
