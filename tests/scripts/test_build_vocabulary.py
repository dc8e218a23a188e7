import string

from helpers.paths import VOCABULARY, script
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from infinity_jax.emoji import artwork, image_spec


def test_shipped_vocabulary_is_what_the_builder_makes():
    made = script('build_vocabulary').train()
    shipped = Tokenizer.from_file(str(VOCABULARY / 'tokenizer.json'))
    assert made.get_vocab() == shipped.get_vocab()
    assert made.get_vocab_size() <= 1500
    text = 'A small Red Apple in the top left corner'
    assert made.encode(text).ids == shipped.encode(text).ids


def test_transformers_reads_it_and_special_tokens_are_those_of_t5():
    tokenizer = AutoTokenizer.from_pretrained(VOCABULARY)
    special = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert special == [0, 1, 2]
    ids = tokenizer('a Red Apple').input_ids
    assert ids[-1] == 1 and len(ids) == 4
    assert tokenizer.decode(ids, skip_special_tokens=True) == 'a red apple'


def test_every_caption_word_is_one_piece():
    tokenizer = Tokenizer.from_file(str(VOCABULARY / 'tokenizer.json'))
    for each in artwork.subset('all'):
        spec = image_spec.ImageSpec(each.name, 'light blue', 'small', 'top left', True, True)
        text = image_spec.caption(spec)
        assert len(tokenizer.encode(text).ids) == len(text.split()) + 1


def test_no_ordinary_character_is_unknown():
    tokenizer = Tokenizer.from_file(str(VOCABULARY / 'tokenizer.json'))
    for each in string.ascii_letters + string.digits + string.punctuation + 'é’':
        assert 2 not in tokenizer.encode(f'zq{each}x').ids, each
