"""Folders and repositories that transformers helps to read; no network anywhere."""

import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import tokenizers
import transformers
from helpers import paths
from helpers.sentencepiece_model import TEXTS, write_sentencepiece

from infinity_jax.errors import UserError
from infinity_jax.text.tokenizer import TOKENIZER_FILES, TextTokenizer

STRINGS = [
    *(paths.REPOSITORY / 'infinity_jax/emoji/files/demo.txt').read_text().splitlines(),
    'two  spaces', ' leading', 'trailing ', 'tab\tand\nnewline', 'x', 'Ünïcödé ﬁne ½ Ａ', '🙂👩‍🚀',
    'an unseen wörd: 漢字', '--ar 16:9', "it’s “quoted”", 'a </s> inside', '<pad><unk>', '0123',
]  # fmt: skip


def ids_of(tokenizer: TextTokenizer, texts: list[str]) -> list[list[int]]:
    ids_BT, lengths_B = tokenizer(texts, max_length=512)
    return [ids[:length].tolist() for ids, length in zip(ids_BT, lengths_B)]


def test_ids_of_the_demo_are_those_of_its_tokenizer_json_and_of_transformers():
    ours = ids_of(TextTokenizer.from_folder(paths.VOCABULARY), STRINGS)
    raw = tokenizers.Tokenizer.from_file(str(paths.VOCABULARY / 'tokenizer.json'))
    theirs = transformers.AutoTokenizer.from_pretrained(paths.VOCABULARY)
    assert ours == [raw.encode(text).ids for text in STRINGS] == theirs(STRINGS).input_ids
    assert len(STRINGS) > 20


@pytest.mark.parametrize('with_config', [True, False])
def test_a_sentencepiece_model_alone_gives_its_own_ids(tmp_path, with_config):
    model = write_sentencepiece(tmp_path)
    if with_config:
        (tmp_path / 'config.json').write_text(json.dumps({'model_type': 't5'}))
    tokenizer = TextTokenizer.from_folder(tmp_path)
    texts = [*TEXTS[:50], 'Red  apple', ' a cat\nsits', 'ﬁne ½ wine', 'unseen 漢字🙂']
    assert ids_of(tokenizer, texts) == [[*model.encode(text), 1] for text in texts]
    assert tokenizer.end_id == 1
    assert tokenizer.vocab_size == model.vocab_size() + 100  # T5's sentinels


def test_a_converted_tokenizer_is_saved_and_travels_to_workers(tmp_path):
    write_sentencepiece(tmp_path)
    tokenizer = TextTokenizer.from_folder(tmp_path)
    (tmp_path / 'copy').mkdir()
    tokenizer.save(tmp_path / 'copy')
    assert {p.name for p in (tmp_path / 'copy').iterdir()} == {'spiece.model', 'tokenizer.json'}
    for again in (
        TextTokenizer.from_folder(tmp_path / 'copy'),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert ids_of(again, TEXTS) == ids_of(tokenizer, TEXTS)


def test_a_damaged_sentencepiece_model_is_refused_in_one_line(tmp_path):
    (tmp_path / 'spiece.model').write_bytes(b'damaged')
    with pytest.raises(UserError, match=r'spiece.model: not readable .* copy the folder') as caught:
        TextTokenizer.from_folder(tmp_path)
    assert '\n' not in str(caught.value)


def test_transformers_is_not_imported_without_need():
    code = (
        'import sys\n'
        'from infinity_jax.inference.pipeline import InfinityPipeline\n'
        'from infinity_jax.text.tokenizer import TextTokenizer\n'
        'from infinity_jax.weights.t5_folder import load_encoder\n'
        'TextTokenizer.from_folder(sys.argv[1]), load_encoder(sys.argv[1])\n'
        'print(*{name.split(".")[0] for name in sys.modules})'
    )
    command = [sys.executable, '-c', code, str(paths.VOCABULARY)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=paths.REPOSITORY)
    assert 'tokenizers' in run.stdout.split()
    assert not {'transformers', 'sentencepiece', 'torch'} & set(run.stdout.split())


def test_a_repository_gives_its_tokenizer_and_downloads_nothing_else(tmp_path, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        for file in TOKENIZER_FILES:
            if (paths.VOCABULARY / file).is_file():
                shutil.copy(paths.VOCABULARY / file, tmp_path)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    tokenizer = TextTokenizer.from_folder('google/flan-t5-xl')
    there = TextTokenizer.from_folder(pathlib.Path(paths.VOCABULARY))
    np.testing.assert_array_equal(tokenizer(STRINGS, 64)[0], there(STRINGS, 64)[0])
    assert asked['name'] == 'google/flan-t5-xl'
    assert set(asked['allow_patterns']) == {*TOKENIZER_FILES, 'config.json'}
