"""Types and checks of flags that several commands share."""

import argparse
import contextlib
import re
from collections.abc import Iterator
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.renamed import notice
from infinity_jax.runtime.remote import check_scheme, is_remote, refuse_remote


class RenamedFlag(argparse.Action):
    """A former name of a flag: hidden from the help, it sets the new flag and prints one line."""

    def __init__(self, option_strings: list[str], dest: str, current: str, **options: Any):
        super().__init__(option_strings, dest, help=argparse.SUPPRESS, **options)
        self.current = current

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        notice(str(option_string), self.current)
        setattr(namespace, self.dest, values)


def aspect_ratio(text: str) -> float:
    """'16:9', width:height, as height / width."""
    from infinity_jax.scales import height_over_width_of

    try:
        return height_over_width_of(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def numbers(text: str) -> tuple[float, ...]:
    """'3' or '1,2,3' as numbers."""
    try:
        return tuple(float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither a number nor a list of them; write 3 or 1,2,3,3'
        ) from None


def layer(text: str) -> int:
    """A layer counted from the end, such as '-5', or 0."""
    if not re.fullmatch(r'0|-[0-9]{1,4}', text):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a layer; write one number: 0 for the logits, or -n for the hidden '
            'states n blocks before the end'
        )
    return int(text)


def path(text: str) -> str:
    """A path. An unset variable of a shell must not mean the current folder, or the default."""
    if not text:
        raise argparse.ArgumentTypeError("'' names nothing; name a path or leave the flag out")
    with _as_argument_error():
        check_scheme(text)
    return text


def local_path(text: str) -> str:
    """A path of this machine; one of a store is refused."""
    with _as_argument_error():
        refuse_remote(path(text), 'the path')
    return text


def input_path(text: str) -> str:
    """A file or folder to read; one of a store is copied to this machine first."""
    path(text)
    if not is_remote(text):
        return text
    from infinity_jax.runtime.remote_copy import local_copy

    with _as_argument_error():
        return str(local_copy(text))


class RemoteOutput(str):
    """A path of a store to write to; `local_outputs` replaces it while a command runs."""


def output_path(text: str) -> str:
    """A file or folder to write; one of a store gets what a command has written when it ends."""
    return RemoteOutput(path(text)) if is_remote(text) else path(text)


@contextlib.contextmanager
def local_outputs(args: argparse.Namespace) -> Iterator[None]:
    """Replaces flags of `output_path` by temporary paths, whose content is copied at the end."""
    remote = {name: value for name, value in vars(args).items() if isinstance(value, RemoteOutput)}
    with contextlib.ExitStack() as copies:
        if remote:
            from infinity_jax.runtime.remote_copy import check_store, local_output
        for name, value in remote.items():
            check_store(value.rstrip('/').rpartition('/')[0])
            setattr(args, name, str(copies.enter_context(local_output(value))))
        yield
    for value in remote.values():
        print(f'copied to {value}')


@contextlib.contextmanager
def _as_argument_error() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seed_number(text: str) -> int:
    """A seed: jax keys would silently take a larger one modulo 2^32."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a seed; write a whole number from 0 to {2**32 - 1}'
        )
    return int(text)


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Checks flags that count something; those that are not given pass.

    Raises:
      UserError: one is below 1.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")} is {value}; wanted 1 or more')
