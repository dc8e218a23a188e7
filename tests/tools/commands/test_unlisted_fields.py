from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from infinity_jax.tools.commands.unlisted_fields import add_fields


def test_a_value_of_another_type_is_left_to_the_check_of_the_run():
    config = ConfigDict({'task': 't2i', 'transformer': {'depth': placeholder(int)}})
    add_fields(config, {'transformer.depth': -0.0, 'lora.rank': 'x'})
    assert isinstance(config.transformer.depth, float) and config.lora.rank == 'x'
