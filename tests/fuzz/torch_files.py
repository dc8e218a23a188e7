"""Malformed torch files: bytes, zip directories, pickles, and names of tensors."""

import functools
import io
import os
import pathlib
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from fuzz.harness import Case
from fuzz.values import damaged, short
from helpers.paths import GOLDEN
from helpers.torch_files import arrays_of_every_dtype, write_legacy_pth, write_pth

from infinity_jax.convert.importing import from_torch
from infinity_jax.weights.weight_files import is_tensor, open_weights

# Opcodes that ask for memory, call functions or build objects, with arguments of all kinds.
OPCODES = (
    b'cos\nsystem\n(Vtouch %s\ntR', b'cbuiltins\neval\n(V1\ntR', b'\x8c\x02os\x8c\x06system\x93',
    b'R', b'b',
    b'ccollections\nOrderedDict\n)R', b'ctorch._utils\n_rebuild_tensor_v2\n',
    b'ctorch\nFloatStorage\n', b'Q',
    b'r\xff\xff\xff\x7f', b'B\xff\xff\xff\x7f', b'\x8e' + b'\xff' * 7 + b'\x7f',
    b'\x8d' + b'\xff' * 8, b'X\xff\xff\xff\xff',
    b'\x8b\xff\xff\xff\x7f', b'\x95' + b'\xff' * 8, b'(' * 3000, b'0' * 10, b'2' * 5000, b'l',
    b'd', b'u', b'e', b't', b's',
    b'h\xff', b'j\xff\xff\xff\xff', b'g99999999\n', b'p99999999999\n', b'I99999999999999999999\n',
    b'L' + b'9' * 9000 + b'L\n',
    b'Fnan\n', b'Sx\n', b"S'\\xff'\n", b'Vx\\ud800\n', b'\x82\x01', b'\x83\xff\xff',
    b'\x84\xff\xff\xff\xff', b'P1\n', b'i__main__\nx\n',
    b'\x81', b'\x92', b'\x85', b'\x86', b'\x87', b'N', b'}', b']', b')', b'\x94', b'.', b'\x97',
    b'\x98', b'\x96' + b'\x00' * 8,
)  # fmt: skip
WRAPPED: tuple[Callable[[dict], Any], ...] = (
    lambda d: {'vae': d}, lambda d: {'vae': d, 'epoch': 3}, lambda d: {'state_dict': d},
    lambda d: {'model': d},
    lambda d: {'trainer': {'vae_local': d}}, lambda d: {'trainer': d}, lambda d: {'trainer': 5},
    lambda d: {'vae': {}},
    lambda d: {'vae': None}, lambda d: {'vae': 5}, lambda d: {}, lambda d: [d], lambda d: 5,
    lambda d: {'vae': [d]},
    lambda d: {f'module.{n}': v for n, v in d.items()},
    lambda d: {f'_orig_mod.module.{n}': v for n, v in d.items()},
    lambda d: {n: [v] for n, v in d.items()}, lambda d: {**d, 'extra': 5}, lambda d: {**d, 5: 5},
    lambda d: {n.encode(): v for n, v in d.items()},
    lambda d: {**d, 'x.weight': np.zeros((0, 3), 'f')},
)  # fmt: skip


class TorchFileFuzzer:
    """Cases of `convert from-torch`."""

    def __init__(self, folder: pathlib.Path):
        self.arrays = {**arrays_of_every_dtype(6, 7), 'view': np.arange(24.0, dtype='f')}
        write_pth(folder / 'zip.pth', self.arrays)
        write_pth(folder / 'deflated.pth', self.arrays, zipfile.ZIP_DEFLATED)
        write_legacy_pth(folder / 'legacy.pth', self.arrays)
        self.files = {p.stem: p.read_bytes() for p in folder.glob('*.pth')}
        found = open_weights(GOLDEN / 'a_2b_style' / 'vae.pth')
        found = found.get('vae', found)
        self.tokenizer = {name: tensor.read() for name, tensor in found.items()}
        write_pth(folder / 'tokenizer.pth', self.tokenizer)
        self.model = self._convert(folder / 'tokenizer.pth', folder / 'model')

    def case(self, rng: random.Random, folder: pathlib.Path) -> Case:
        maker = rng.choice((self._bytes, self._zip, self._pickle, self._pickle, self._names))
        return maker(rng, folder)

    def _bytes(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """Damage anywhere in a file."""
        kind = rng.choice(list(self.files))
        damage, content = damaged(rng, self.files[kind])
        path = folder / rng.choice(('x.pth', 'x.pt', 'x.bin', 'x.safetensors', 'pytorch_model.bin'))
        path.write_bytes(content)
        # The old layout has no checksums: values may change where the pickles do not.
        values = kind != 'legacy' and path.suffix != '.safetensors'
        return Case(f'{kind} {path.name}: {damage}', lambda: _values(path), self._judge(values))

    def _zip(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A zip whose members are another kind, doubled, missing, renamed or huge."""
        path = folder / 'x.pth'
        with zipfile.ZipFile(io.BytesIO(self.files['zip'])) as archive:
            members = {n: archive.read(n) for n in archive.namelist()}
        name = rng.choice(list(members))
        edit = rng.choice(
            (
                'missing',
                'doubled',
                'renamed',
                'huge',
                'encrypted',
                'order',
                'short',
                'long',
                'comment',
            )
        )
        if edit == 'missing':
            del members[name]
        elif edit == 'renamed':
            members[rng.choice(('../x', '/x', 'x', 'x/data.pkl', name.upper()))] = members.pop(name)
        elif edit == 'short':
            members[name] = members[name][: rng.randrange(len(members[name]) or 1)]
        elif edit == 'long':
            members[name] += rng.randbytes(rng.choice((1, 100)))
        elif edit == 'order':
            members = dict(rng.sample(list(members.items()), len(members)))
        elif edit == 'huge':
            members[name] = bytes(2**24)
        compression = rng.choice(
            (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        )
        with zipfile.ZipFile(path, 'w', compression) as archive:
            for n, content in members.items():
                archive.writestr(n, content)
            if edit == 'doubled':
                other = zipfile.ZipInfo(name)
                archive.writestr(other, rng.randbytes(len(members[name])))
            if edit == 'comment':
                archive.comment = b'PK\5\6' * 20
        if edit == 'encrypted':
            content = path.read_bytes()
            path.write_bytes(
                content.replace(b'PK\1\2\x14\x03\x14\0\0\0', b'PK\1\2\x14\x03\x14\0\1\0')
            )
        values = edit not in ('short', 'long', 'huge')
        return Case(f'zip: {name} {edit}', lambda: _values(path), self._judge(values))

    def _pickle(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A pickle with other opcodes, in a zip with right checksums or in the old layout."""
        path, mark = folder / 'x.pth', folder / 'executed'
        with zipfile.ZipFile(io.BytesIO(self.files['zip'])) as archive:
            members = {n: archive.read(n) for n in archive.namelist()}
        content = members['archive/data.pkl']
        edit = rng.choice(('put in', 'put in', 'put in', 'instead', 'bytes', 'object'))
        opcode = rng.choice(OPCODES)
        if b'%s' in opcode:
            opcode = opcode % os.fsencode(mark)
        place = rng.randrange(2, len(content))
        name = f'{edit} {opcode[:30]!r} at {place}'
        if edit == 'put in':
            content = content[:place] + opcode + content[place:]
        elif edit == 'instead':
            content = b'\x80\x02' + opcode + b'.'
        elif edit == 'bytes':
            name, content = damaged(rng, content)
        else:
            made = rng.choice(
                (
                    5, None, 'x', [1], {'a': {'b': OrderedDict()}}, {1: 2}, {'a': float('nan')},
                    {(): ()}, set(),
                    {'a': b'x'}, {'a': 1j}, {'a': slice(1)}, {'a': range(3)}, {None: None},
                    {'a': 10**5000},
                )
            )  # fmt: skip
            name, content = (
                f'object {short(made)}',
                pickle.dumps(made, protocol=rng.randrange(2, 6)),
            )
        if rng.random() < 0.7:
            members['archive/data.pkl'] = content
            with zipfile.ZipFile(path, 'w') as archive:
                for n, member in members.items():
                    archive.writestr(n, member)
        else:
            old = self.files['legacy']
            start = old.index(b'\x80\x02}q\x00(X\x07\x00\x00\x00float32')
            path.write_bytes(old[:start] + content)

        def judge(found: Any) -> str:
            return 'the file was executed' if mark.exists() else ''

        return Case(f'pickle: {name}', lambda: _values(path), judge)

    def _names(self, rng: random.Random, folder: pathlib.Path) -> Case:
        """A tokenizer's state dict with wrappers, or with a tensor of another name or shape."""
        path, state = folder / 'x.pth', dict(self.tokenizer)
        name = rng.choice(list(state))
        edit = rng.choice(('wrap', 'wrap', 'drop', 'rename', 'shape', 'dtype', 'values', 'extra'))
        made: Any = state
        if edit == 'wrap':
            number = rng.randrange(len(WRAPPED))
            name, made = f'{number}', WRAPPED[number](state)
        elif edit == 'drop':
            del state[name]
        elif edit == 'rename':
            state[rng.choice(('x', '', name + '.weight', 'module.' + name))] = state.pop(name)
        elif edit == 'shape':
            a = state[name]
            state[name] = rng.choice(
                (a[None], a.ravel(), a[..., :1], a[:0], a.T.copy(), np.array(1, 'f'))
            )
        elif edit == 'dtype':
            state[name] = state[name].astype(rng.choice(('int64', 'bool', 'float16', 'float64')))
        elif edit == 'values':
            with np.errstate(all='ignore'):
                state[name] = (state[name] * rng.choice((np.nan, np.inf, 0))).astype('f')
        else:
            state[rng.choice(('epoch', 'x.weight', 'ema.x'))] = np.ones(3, 'f')
        write_pth(path, made)
        run = functools.partial(self._convert, path, folder / 'model')
        return Case(f'names: {edit} {name}', run, functools.partial(self._same_model, edit))

    def _convert(self, path: pathlib.Path, out: pathlib.Path) -> dict[str, np.ndarray]:
        from_torch(out, tokenizer=path, overrides={'tokenizer.norm_groups': 2})
        tensors = open_weights(out / 'tokenizer.safetensors')
        return {name: tensor.read() for name, tensor in tensors.items()}

    def _same_model(self, edit: str, read: dict[str, np.ndarray]) -> str:
        if edit in ('shape', 'dtype', 'values'):
            return ''
        same = read.keys() == self.model.keys() and all(
            np.array_equal(a, read[n]) for n, a in self.model.items()
        )
        return '' if same else 'another tokenizer was read'

    def _judge(self, values: bool) -> Callable[[dict[str, np.ndarray]], str]:
        def judge(found: dict[str, np.ndarray]) -> str:
            for name, array in found.items():
                if name not in self.arrays:
                    continue
                wanted = self.arrays[name]
                if values and (array.shape, array.tobytes()) != (wanted.shape, wanted.tobytes()):
                    return f'{name} has other values'
            if values and set(found) != set(self.arrays):
                return f'it has the tensors {", ".join(map(str, found))[:80]}'
            return ''

        return judge


def _values(path: pathlib.Path) -> dict[str, np.ndarray]:
    found = open_weights(path)
    return {name: tensor.read() for name, tensor in found.items() if is_tensor(tensor)}
