"""The fuzzers by the names of their kinds."""

import pathlib
from collections.abc import Callable

from fuzz.configs import ConfigFuzzer
from fuzz.harness import Fuzzer
from fuzz.jsonl import JsonlFuzzer
from fuzz.layouts import LayoutFuzzer
from fuzz.model_folders import ModelFolderFuzzer
from fuzz.prompts import PromptFuzzer
from fuzz.tars import TarFuzzer
from fuzz.torch_files import TorchFileFuzzer

FUZZERS: dict[str, Callable[[pathlib.Path], Fuzzer]] = {
    'config': ConfigFuzzer,
    'model': ModelFolderFuzzer,
    'jsonl': JsonlFuzzer,
    'tar': TarFuzzer,
    'layout': LayoutFuzzer,
    'torch': TorchFileFuzzer,
    'prompt': PromptFuzzer,
}
