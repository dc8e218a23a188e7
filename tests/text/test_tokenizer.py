"""Tokenizing prompts."""

import numpy as np
import pytest
import tokenizers
from helpers import paths

from infinity_jax.errors import UserError
from infinity_jax.text.characters import is_blank, shortened
from infinity_jax.text.tokenizer import TextTokenizer

GOLDEN = paths.GOLDEN / 't5_tiny'
WORDS = ['<pad>', '</s>', '<unk>', 'a', 'red', 'apple', 'on', 'blue']


def word_tokenizer(with_end: bool) -> tokenizers.Tokenizer:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if with_end:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single='$A </s>', special_tokens=[('</s>', 1)]
        )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    return tokenizer


@pytest.fixture(params=[True, False], ids=['with end token', 'without'])
def tokenizer(request, tmp_path):
    word_tokenizer(request.param).save(str(tmp_path / 'tokenizer.json'))
    return TextTokenizer.from_folder(tmp_path)


def test_pads_with_zeros_and_ends_with_the_end_token(tokenizer):
    ids, lengths = tokenizer(['a red apple on blue', 'apple'], max_length=16)
    np.testing.assert_array_equal(ids, [[3, 4, 5, 6, 7, 1], [5, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(lengths, [6, 2])
    assert ids.dtype == lengths.dtype == np.int32


def test_tokens_are_counted_before_any_cut(tokenizer):
    assert tokenizer.token_counts(['a red apple on blue', 'apple']) == [6, 2]


def test_cuts_long_prompts_but_keeps_the_end_token(tokenizer):
    ids, lengths = tokenizer(['a red apple on blue'], max_length=4, pad_to=8)
    np.testing.assert_array_equal(ids, [[3, 4, 5, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(lengths, [4])


def test_too_narrow_padding_is_refused(tokenizer):
    with pytest.raises(UserError, match='pad_to 2'):
        tokenizer(['a red apple'], max_length=16, pad_to=2)


@pytest.mark.parametrize('prompts', [['a red apple', '  '], [''], ['\u200b\0']])
def test_empty_prompt_is_refused(tokenizer, prompts):
    with pytest.raises(UserError, match=f'prompt {len(prompts)} of {len(prompts)} is empty'):
        tokenizer(prompts, max_length=16)


def test_tokenizer_files_survive_saving(tokenizer, tmp_path):
    (tmp_path / 'copy').mkdir()
    tokenizer.save(tmp_path / 'copy')
    again = TextTokenizer.from_folder(tmp_path / 'copy')
    np.testing.assert_array_equal(again(['red apple'], 8)[0], tokenizer(['red apple'], 8)[0])
    assert (tmp_path / 'copy/tokenizer.json').read_bytes() == tokenizer.files['tokenizer.json']


def test_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match='no tokenizer.json and no spiece.model'):
        TextTokenizer.from_folder(tmp_path)
    (tmp_path / 'tokenizer.json').write_text('{}')
    with pytest.raises(UserError, match='not a tokenizer'):
        TextTokenizer.from_folder(tmp_path)


def test_characters_that_the_vocabulary_lacks_are_found(tokenizer):
    prompts = ['a red apple', 'a 红苹果 on 红', 'blue 🍎 cat']
    assert tokenizer.unknown_characters(prompts) == ['', '红苹果', '🍎cat']


def test_a_text_of_megabytes_gives_the_ids_of_its_beginning(tokenizer):
    text = 'a red apple on blue ' * 100_000
    ids, lengths = tokenizer([text, text[:4000]], max_length=512)
    np.testing.assert_array_equal(ids[0], ids[1])
    assert lengths.tolist() == [512, 512]
    assert 512 < tokenizer.token_counts([text], 512)[0] < 10_000
    assert tokenizer.token_counts([text], 10_000)[0] > 10_000


def test_texts_are_shortened_at_a_word():
    assert shortened('a red apple', 11) == 'a red apple'
    assert shortened('a red apple', 10) == 'a red' and shortened('a red apple', 5) == 'a red'
    assert shortened('a' * 50, 10) == 'a' * 10


@pytest.mark.parametrize('text', ['', ' \n\t', '\0', '\u200b\u2060', '\ufeff', '\u2028\x85\xa0'])
def test_texts_that_show_nothing_are_blank(text):
    assert is_blank(text) and not is_blank(text + '.') and not is_blank(text + '🍎')
