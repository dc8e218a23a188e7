"""Hosts with different data are refused with the difference."""

import json
import types

import pytest
from helpers.data_folders import encoded, jsonl_folder, line, tar_folder

from infinity_jax.data import agreement
from infinity_jax.data.agreement import agreed_buckets
from infinity_jax.data.buckets import make_buckets
from infinity_jax.data.config import DataConfig, SourceConfig
from infinity_jax.errors import UserError


def make(folder, index, **fields):
    data = DataConfig(
        sources=(SourceConfig('jsonl', str(folder)), SourceConfig('emoji')), held_out_share=0.0,
        max_broken_share=0.5, index_dir=str(index), **fields,
    )  # fmt: skip
    return lambda: make_buckets(data, 'train', smallest=1)


@pytest.fixture(autouse=True)
def two_hosts(monkeypatch):
    monkeypatch.setattr(agreement, 'jax', types.SimpleNamespace(process_count=lambda: 2))


def on_two_hosts(monkeypatch, first, second):
    """The outcome on the second host, as if the first one had gathered its text before."""
    texts = []

    def gather(text):
        texts.append(text)
        return [texts[0], text]

    monkeypatch.setattr(agreement, 'gather_texts', gather)
    try:
        agreed_buckets(first)
    except UserError:
        pass
    return agreed_buckets(second)


def test_hosts_that_agree_get_their_buckets(tmp_path, monkeypatch):
    folder = jsonl_folder(tmp_path / 'data')
    for place in ('one', 'two'):
        (tmp_path / place).mkdir()
    same = make(folder, tmp_path / 'one'), make(folder, tmp_path / 'two')
    (bucket,) = on_two_hosts(monkeypatch, *same)
    assert len(bucket.parts) == 2


def test_one_line_less_and_one_more_broken_image(tmp_path, monkeypatch):
    folder = jsonl_folder(tmp_path / 'data', count=6, broken=False)
    more = make(folder, tmp_path / 'one')
    more()  # its index is made before the files change
    listed = folder / '0.500_1.jsonl'
    lines = listed.read_text().splitlines()
    listed.write_text('\n'.join(lines[1:]))
    less = make(folder, tmp_path / 'two')
    texts = []
    monkeypatch.setattr(agreement, 'gather_texts', lambda text: texts.append(text) or [text])
    agreed_buckets(less)
    listed.write_text('\n'.join([*lines[1:], line('missing.jpg', text='a')]))
    agreed_buckets(make(folder, tmp_path / 'three'))
    (folder / 'missing.jpg').write_bytes(encoded(8, 8))
    agreed_buckets(make(folder, tmp_path / 'four'))
    five, broken, six = map(json.loads, texts)
    with pytest.raises(UserError, match='host 0 has 6 records, host 1 has 5 records; give'):
        agreement.check_equal([six, five])
    message = 'host 0 has 0 broken, .*: none, host 2 has 1 broken, .*: 0.500_1.jsonl line 3; give'
    with pytest.raises(UserError, match=message):
        agreement.check_equal([six, six, broken])
    other = json.loads(texts[2].replace('sizes": "', 'sizes": "x'))
    with pytest.raises(UserError, match='host 0 has checksum of names and sizes: '):
        agreement.check_equal([six, other])
    agreement.check_equal([six, six])


def test_an_error_of_one_host_ends_all(tmp_path, monkeypatch):
    good, bad = jsonl_folder(tmp_path / 'good'), tar_folder(tmp_path / 'bad')
    makers = make(good, tmp_path / 'one'), make(bad, tmp_path / 'one')
    with pytest.raises(UserError, match='host 1 cannot use its data: .*no \\*.jsonl in there'):
        on_two_hosts(monkeypatch, *makers)
    with pytest.raises(UserError, match='host 0 cannot use its data: .*no \\*.jsonl in there'):
        on_two_hosts(monkeypatch, *makers[::-1])
    with pytest.raises(UserError, match='^data source .*no \\*.jsonl'):
        on_two_hosts(monkeypatch, makers[1], makers[1])
