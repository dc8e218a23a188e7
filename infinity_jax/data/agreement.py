"""Checks that all hosts of a run have the same data, before any of them reads a batch.

Each host decides by its own records which bucket comes next: hosts that disagree would train on
batches that no single host reads, or wait for each other for ever.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from infinity_jax.data.buckets import Bucket
from infinity_jax.data.stored_source import StoredSource
from infinity_jax.errors import UserError
from infinity_jax.runtime.host_texts import gather_texts

NAMED = 3  # broken records that a host names
CHECKSUM = 'checksum of names and sizes'


def agreed_buckets(make: Callable[[], list[Bucket]]) -> list[Bucket]:
    """Makes the buckets of this host, and compares them with those of the other hosts.

    Args:
      make: makes the buckets; raises `UserError`, which all hosts then raise.

    Raises:
      UserError: the hosts have different data; the first difference is named.
    """
    if jax.process_count() == 1:
        return make()
    buckets: list[Bucket] = []
    error: UserError | None = None
    try:
        buckets = make()
        facts = {'error': '', 'sources': _described(buckets)}
    except UserError as failure:
        error, facts = failure, {'error': str(failure), 'sources': []}
    hosts = [json.loads(text) for text in gather_texts(json.dumps(facts))]
    if error is not None and all(host['error'] for host in hosts):
        raise error
    check_equal(hosts)
    return buckets


def check_equal(hosts: Sequence[dict[str, Any]]) -> None:
    """Raises `UserError` that names the first difference between the data of hosts.

    Args:
      hosts: for each host its `error`, or '' and its `sources`.
    """
    for number, host in enumerate(hosts):
        if host['error']:
            raise UserError(f'host {number} cannot use its data: {host["error"]}')
    for number, host in enumerate(hosts):
        counts = len(hosts[0]['sources']), len(host['sources'])
        if counts[0] != counts[1]:
            raise UserError(
                f'host 0 has {counts[0]} data sources, host {number} has {counts[1]}; give every '
                'host the same config'
            )
        for ours, theirs in zip(hosts[0]['sources'], host['sources'], strict=True):
            if differing := _differing(ours, theirs):
                raise UserError(
                    f'the hosts have different data in {ours["name"]}: host 0 has '
                    f'{_in_words(ours, differing)}, host {number} has '
                    f'{_in_words(theirs, differing)}; give every host the same files'
                )


def _described(buckets: Sequence[Bucket]) -> list[dict[str, Any]]:
    """The facts of each stored source in which hosts must agree."""
    sources = {part.number: part.source for bucket in buckets for part in bucket.parts}
    facts = []
    for _, stored in sorted(sources.items()):
        if not isinstance(stored, StoredSource):
            continue
        index, checksum = stored.index, hashlib.sha256()
        for array in (index.keys, index.sizes):
            checksum.update(np.ascontiguousarray(array).data)
        facts.append(
            {
                'name': stored.source.name,
                'files': len(stored.source.files()),
                'records': len(index),
                'broken': len(index.broken),
                'damaged files': len(index.damaged),
                'names of broken records': [name for name, _ in index.broken[:NAMED]],
                CHECKSUM: checksum.hexdigest()[:8],
            }
        )
    return facts


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The facts that differ, the checksum if only it does; a path may be another on each host."""
    names = [name for name in ours if name != 'name' and ours[name] != theirs[name]]
    return [name for name in names if name != CHECKSUM] or names


def _in_words(facts: dict[str, Any], names: Sequence[str]) -> str:
    words = []
    for name in names:
        value = facts[name]
        if isinstance(value, list):
            value = ', '.join(value) or 'none'
        words.append(f'{value} {name}' if isinstance(value, int) else f'{name}: {value}')
    return ', '.join(words)
