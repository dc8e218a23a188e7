"""Malformed model folders: fields of config.json; damaged, missing and exchanged files."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from fuzz.harness import Case
from fuzz.values import ODD, at, changed, damaged, damaged_text, paths, replaced, same, short
from helpers.generation import small_model

from infinity_jax.inference.pipeline import InfinityPipeline
from infinity_jax.weights.model_folder import LoadedModel, load_model, save_model

WEIGHTS = ('transformer.safetensors', 'tokenizer.safetensors', 'text_encoder/model.safetensors')
DESCRIPTIONS = ('config.json', 'config.json', 'text_encoder/config.json')
TEXTS = ('config.json', 'text_encoder/config.json', 'text_encoder/tokenizer.json')
# Field of text_encoder/config.json -> field of the `TextConfig` that it becomes. All others are for
# other programs, or have a single right value.
HUGGING_FACE = {
    'vocab_size': 'vocab_size', 'd_model': 'width', 'num_layers': 'num_layers',
    'num_heads': 'num_heads', 'd_kv': 'head_dim', 'd_ff': 'ffn_width',
    'relative_attention_num_buckets': 'buckets', 'relative_attention_max_distance': 'max_distance',
}  # fmt: skip
FREE = ('source', 'extra')  # of config.json: kept as they are


class ModelFolderFuzzer:
    """Cases of `--checkpoint FOLDER`."""

    def __init__(self, folder: pathlib.Path):
        self.good = folder / 'model'
        save_model(self.good, small_model())
        self.model = load_model(self.good)

    def case(self, rng: random.Random, folder: pathlib.Path) -> Case:
        folder = folder / 'model'
        shutil.copytree(self.good, folder)
        if rng.random() < 0.6:  # an older folder has no hashes of files that would show all damage
            _without_hashes(folder / 'config.json')
        makers = (
            self._value, self._value, self._name, self._text, self._text, self._weights,
            self._weights, self._header, self._file, self._index,
        )  # fmt: skip
        name, judge = rng.choice(makers)(rng, folder)
        return Case(name, lambda: _load(folder), judge)

    def _value(self, rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable]:
        """Another value of a field."""
        file = rng.choice(DESCRIPTIONS)
        fields = json.loads((folder / file).read_text())
        path = rng.choice(paths(fields))
        value = changed(rng, at(fields, path))
        (folder / file).write_text(json.dumps(replaced(fields, path.split('.'), value)))
        return f'{file}: {path} = {short(value)}', self._judge({(file, path): value})

    def _name(self, rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable]:
        """A field that is left out, renamed, doubled or new."""
        file = rng.choice(DESCRIPTIONS)
        fields = json.loads((folder / file).read_text())
        path = rng.choice(paths(fields))
        *groups, name = path.split('.')
        group = dict(at(fields, '.'.join(groups)) if groups else fields)
        value = group.pop(name)
        new = rng.choice((None, name.upper(), name + ' ', name[:-1], 'x', '', '__class__'))
        text = json.dumps({**group, **({} if new is None else {new: value})})
        if rng.random() < 0.3:
            new, text = 'itself twice', f'{text[:-1]}, "{name}": {json.dumps(value)}, "{name}": 1}}'
        content = replaced(fields, groups, 'HERE') if groups else 'HERE'
        (folder / file).write_text(json.dumps(content).replace('"HERE"', text))
        return f'{file}: {path} becomes {new}', self._judge({})

    def _text(self, rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable]:
        """A damaged description or vocabulary."""
        file = folder / rng.choice(TEXTS)
        damage, content = damaged_text(rng, file.read_bytes())
        file.write_bytes(content)
        return f'{file.name}: {damage}', self._judge({})

    def _weights(self, rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable]:
        """Damaged weights."""
        file = folder / rng.choice(WEIGHTS)
        damage, content = damaged(rng, file.read_bytes())
        file.write_bytes(content)
        return f'{file.name}: {damage}', self._judge({})

    def _header(self, rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable]:
        """A header of weights with an entry of another value, name, type, shape or place."""
        file = folder / rng.choice(WEIGHTS)
        content = file.read_bytes()
        length = int.from_bytes(content[:8], 'little')
        header = json.loads(content[8 : 8 + length])
        name = rng.choice(list(header))
        entry = header[name]
        field = rng.choice(list(entry))
        edit = rng.choice(('value', 'drop', 'rename', 'copy', 'metadata'))
        if edit == 'value':
            entry[field] = changed(rng, entry[field])
        elif edit == 'drop':
            del header[name]
        elif edit == 'rename':
            header[rng.choice(('x', '', name + 'x', '__metadata__', '../x'))] = header.pop(name)
        elif edit == 'copy':
            header[name] = dict(header[rng.choice(list(header))])
        else:
            metadata = header.setdefault('__metadata__', {})
            metadata[rng.choice(list(metadata) or ['x'])] = rng.choice(
                ('', 'x', '[]', '{}', 'null', '{"a": 1}', '[' * 100_000)
            )
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, 'little') + text + content[8 + length :])
        return f'{file.name}: header of {name}: {edit} {field}', self._judge({})

    def _file(self, rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable]:
        """A file that is missing, another one, or none."""
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())
        file, other = (folder / name for name in rng.sample(names, 2))
        edit = rng.choice(('missing', 'folder', 'pipe', 'loop', 'dangling', 'other', 'device'))
        if edit == 'other':
            shutil.copy(other, file)
        else:
            file.unlink()
        if edit == 'folder':
            file.mkdir()
        elif edit == 'pipe':
            os.mkfifo(file)
        elif edit in ('loop', 'dangling', 'device'):
            file.symlink_to({'loop': file, 'dangling': '/nope', 'device': '/dev/zero'}[edit])
        return f'{file.name}: {edit} {other.name}', self._judge({})

    def _index(self, rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable]:
        """An index of shards that is not one."""
        part = rng.choice(('transformer.', 'tokenizer.', 'text_encoder/model.'))
        value: Any = rng.choice(
            (
                {}, {'weight_map': {}}, {'weight_map': []}, {'weight_map': {'x': 1}}, None, [],
                {'weight_map': {'x': ['y']}}, {'weight_map': {'x': '../x'}},
                {'weight_map': {'x': ''}},
                {'weight_map': {'x': '.'}}, {'weight_map': {'x': None}},
                {'weight_map': {'x': 'a\0'}},
                {'weight_map': {'x': 'y.safetensors'}}, {'weight_map': {'x': 'config.json'}},
                {'weight_map': {'x': f'{pathlib.Path(part).name}safetensors'}}, rng.choice(ODD),
            )
        )  # fmt: skip
        (folder / f'{part}safetensors.index.json').write_text(json.dumps(value))
        return f'{part}safetensors.index.json is {short(value)}', self._judge({})

    def _judge(self, edits: Mapping[tuple[str, str], Any]) -> Callable[[LoadedModel], str]:
        """Judges whether a model equals the unharmed one, but for the edited fields."""

        def judge(model: LoadedModel) -> str:
            wanted, read = (_described(each) for each in (self.model, model))
            for (file, path), value in edits.items():
                name = path if file == 'config.json' else f'text.{HUGGING_FACE.get(path, "")}'
                if at(read, name) is None or name.split('.')[0] in FREE:
                    continue
                if not same(value, at(read, name)) and not isinstance(value, dict):
                    return f'{path} was given as {short(value)}, and is {short(at(read, name))}'
                wanted = replaced(wanted, name.split('.'), at(read, name))
            if not edits:
                read, wanted = ({**each, **dict.fromkeys(FREE)} for each in (read, wanted))
            if read != wanted:
                return f'read as {_difference(wanted, read)}'
            for part in ('transformer_params', 'tokenizer_params', 'text_params'):
                pairs = zip(
                    *map(jax.tree.leaves, (getattr(self.model, part), getattr(model, part)))
                )
                if not all(np.array_equal(a, b) for a, b in pairs):
                    return f'{part} has other values'
            prompt = ['a small red apple on a light blue background']
            assert self.model.text_tokenizer is not None and model.text_tokenizer is not None
            ids, lengths = (m.text_tokenizer(prompt, 64) for m in (self.model, model))
            if not np.array_equal(ids[0], lengths[0]):
                return 'prompts become other tokens'
            return ''

        return judge


def _without_hashes(path: pathlib.Path) -> None:
    fields = json.loads(path.read_text())
    del fields['files']
    path.write_text(json.dumps(fields, indent=2))


def _load(folder: pathlib.Path) -> LoadedModel:
    InfinityPipeline.from_pretrained(folder, max_batch=1)
    return load_model(folder)


def _described(model: LoadedModel) -> dict[str, Any]:
    fields = dataclasses.asdict(model.configs)
    return json.loads(json.dumps(fields))


def _difference(wanted: Any, read: Any) -> str:
    names = [p for p in {*paths(wanted), *paths(read)} if at(wanted, p) != at(read, p)]
    last = sorted(names, key=len)[-1]
    return f'{last} {short(at(read, last))}, not {short(at(wanted, last))}'
