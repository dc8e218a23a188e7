"""Configuration of training data: sources, image shapes and captions."""

import dataclasses

from infinity_jax.errors import UserError
from infinity_jax.ranges import RATE, Range, check_ranges, real
from infinity_jax.runtime.local_files import check_paths
from infinity_jax.runtime.remote import refuse_remote
from infinity_jax.scales import RATIOS

PLACED_RATE = 0.3  # default share of emoji images with a random size and place
_TABLE = ('split', 'image_field', 'text_field')
# Kind of source -> the fields of `SourceConfig` that it reads, besides path and weight.
KINDS: dict[str, tuple[str, ...]] = {
    'arrow': _TABLE,
    'emoji': ('subset', 'placed_rate', 'scenes', 'scene_subset'),
    'features': (),
    'folder': (),
    'imagefolder': ('image_field', 'text_field'),
    'jsonl': ('images', 'image_field', 'text_field'),
    'parquet': _TABLE,
    'sidecar': ('text_field',),
    'tar': ('text_field',),
    'tfds': ('name', *_TABLE),
}
SPLITS = ('train', 'held_out')
# Kinds whose files are mapped into memory, or read by a library that opens files of this machine.
_LOCAL_KINDS = ('arrow', 'features', 'tfds')
_REMOTE_KINDS = tuple(kind for kind in KINDS if kind not in (*_LOCAL_KINDS, 'emoji'))


_WEIGHT = real(0, 1e9, above=True)
_RANGES = {
    'image_size': Range(1, 2**14),
    'placed_rate': RATE,
    'scenes': RATE,
    'num_workers': Range(0, 4096),
    'held_out_share': RATE,
    'smallest_crop': real(0, 1, above=True),
    'max_image_pixels': Range(1, 2**40),
    'short_captions': RATE,
    'max_broken_share': RATE,
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of images and captions."""

    # 'jsonl', 'tar', 'imagefolder', 'sidecar', 'parquet', 'arrow', 'tfds', 'folder' (images without
    # captions), 'features' (made from one of the others) or 'emoji'; docs/data.md describes them
    kind: str
    path: str = ''  # folder of the files; of tfds the data set, or the folder that holds `name`
    images: str = ''  # jsonl: folder that relative image paths start from; '': `path`
    name: str = ''  # tfds: for example 'coco_captions:1.1.0'; '': `path` is the data set
    split: str = 'train'  # parquet, arrow, tfds (also 'train[:90%]'): split of the stored data set
    image_field: str = ''  # '': image_path for jsonl, file_name for imagefolder, else image
    # Field of the captions, a text or a list of texts; 'captions/text' where nested; '': images
    # alone, for tokenizers.
    text_field: str = 'text'
    subset: str = 'starter'  # emoji: 'starter', 'demo', 'unseen' or 'all'
    placed_rate: float = PLACED_RATE  # emoji: share of images of random size and place
    scenes: float = 0.0  # emoji: share of images that are scenes of several emoji
    scene_subset: str = ''  # emoji: those of the scenes; '': `subset`
    weight: float = 1.0  # share of the training images, relative to the weights of other sources

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(
                f'data source {self.kind!r} is unknown; choose one of {", ".join(KINDS)}'
            )
        if self.kind != 'emoji' and not self.path:
            raise UserError(f'a data source of kind {self.kind} has no path; name its folder')
        self._check_unused()
        check_paths(self, 'data.sources.', ('path', 'images'))
        if self.kind in _LOCAL_KINDS:
            advice = f'copy the folder here; a store is read by {", ".join(_REMOTE_KINDS)}'
            refuse_remote(self.path, f'data.sources.path of kind {self.kind}', advice)
        check_ranges(self, 'data.sources.', {'placed_rate': RATE, 'scenes': RATE})
        if not _WEIGHT.has(self.weight):
            raise UserError(
                f'data source {self.kind} {self.path} has weight {self.weight}; wanted a positive '
                'number, or leave the source out'
            )

    def _check_unused(self) -> None:
        """Raises `UserError` for a field that is set and not read by this kind of source."""
        for field in dataclasses.fields(self):
            read = ('kind', 'path', 'weight', *KINDS[self.kind])
            if field.name not in read and getattr(self, field.name) != field.default:
                raise UserError(
                    f'data source {self.kind} {self.path}: {field.name} is set, but kind '
                    f'{self.kind} has no such field; leave it out'
                )

    @property
    def has_captions(self) -> bool:
        """Whether the source gives captions as well as images."""
        return self.kind != 'folder' and bool(self.text_field)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources of images and captions, the shapes of images, and how captions are sampled."""

    source: str = 'emoji'  # the embedded emoji are used unless `sources` names others
    subset: str = 'starter'  # of the embedded emoji: 'starter', 'demo', 'unseen' or 'all'
    image_size: int = 64  # pixels along the edge of a square; other ratios have about its area
    placed_rate: float = PLACED_RATE  # share of the emoji images with a random size and place
    scenes: float = 0.0  # share of the emoji images that are scenes of one to four emoji
    scene_subset: str = ''  # of the emoji in scenes; '': `subset`
    num_workers: int = 0  # processes that read and decode; 0: two threads of the main process
    sources: tuple[SourceConfig, ...] = ()  # mixed in training by their weights
    held_out: tuple[SourceConfig, ...] = ()  # for evaluation; (): a share of `sources`
    held_out_share: float = 0.01  # share of the records of `sources`, chosen by their names
    ratios: tuple[str, ...] = ('1.000',)  # height/width of the buckets; ('all',): all 15 of them
    ratio_weights: tuple[float, ...] = ()  # per ratio: relative frequency of its bucket
    # 1: the largest crop of an image, at the centre. Below 1: a crop of random size and position at
    # each use, its edge at least this share of the largest crop's; for training tokenizers.
    smallest_crop: float = 1.0
    short_captions: float = 0.2  # probability that the short caption of a record is used
    # Images of more pixels are broken records. A reading thread needs up to 8 bytes per pixel.
    max_image_pixels: int = 178_956_970
    max_broken_share: float = 0.01  # a run stops if more records than this share are broken
    # A bucket of fewer records than a batch repeats them within a batch, instead of being left out.
    repeat_records: bool = False
    index_dir: str = ''  # folder of the indexes of sources; '': in the run folder

    def __post_init__(self):
        if self.source != 'emoji':
            raise UserError(
                f'data source {self.source!r} is unknown; wanted emoji, or a list in data.sources'
            )
        check_ranges(self, 'data.', _RANGES)
        check_paths(self, 'data.', ('index_dir',))
        refuse_remote(self.index_dir, 'config field data.index_dir')
        unknown = [name for name in self.ratios if name not in (*RATIOS, 'all')]
        if unknown or not self.ratios:
            raise UserError(
                f"config field data.ratios is {self.ratios}; wanted ('all',) or names out of "
                f'{", ".join(RATIOS)}'
            )
        if self.ratio_weights and (
            len(self.ratio_weights) != len(self.bucket_names)
            or not all(map(_WEIGHT.has, self.ratio_weights))
        ):
            raise UserError(
                f'config field data.ratio_weights is {self.ratio_weights}; wanted a positive '
                f'number for each of the {len(self.bucket_names)} ratios'
            )

    @property
    def bucket_names(self) -> tuple[str, ...]:
        """Names of the ratios of the buckets."""
        return tuple(RATIOS) if self.ratios == ('all',) else self.ratios

    def sources_of(self, split: str) -> tuple[SourceConfig, ...]:
        """The sources of a split; both splits share them where `held_out` is empty."""
        if split not in SPLITS:
            raise UserError(f'split {split!r} is unknown; choose one of {", ".join(SPLITS)}')
        if split == 'held_out' and self.held_out:
            return self.held_out
        emoji = SourceConfig(
            'emoji',
            subset=self.subset,
            placed_rate=self.placed_rate,
            scenes=self.scenes,
            scene_subset=self.scene_subset,
        )
        return self.sources or (emoji,)
