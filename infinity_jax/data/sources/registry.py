"""The one place that makes a source of stored records from its configuration."""

from infinity_jax.data.config import SourceConfig
from infinity_jax.data.features.stored import FeatureSource
from infinity_jax.data.records import Source
from infinity_jax.data.sources.folder import FolderSource
from infinity_jax.data.sources.jsonl import JsonlSource
from infinity_jax.data.sources.tar import TarSource
from infinity_jax.data.sources.tfds import TfdsSource
from infinity_jax.errors import UserError

STORED = {
    'features': FeatureSource,
    'folder': FolderSource,
    'jsonl': JsonlSource,
    'tar': TarSource,
    'tfds': TfdsSource,
}


def open_source(config: SourceConfig) -> Source | FeatureSource:
    """A source of any kind but emoji, whose images are drawn and need no index.

    Raises:
      UserError: nothing of that kind is in its folder.
    """
    if config.kind not in STORED:
        raise UserError(f'data source {config.kind!r} stores nothing; wanted {", ".join(STORED)}')
    return STORED[config.kind].open(config)
