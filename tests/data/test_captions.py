import collections

import numpy as np
import pytest

from infinity_jax.data.captions import RecordCaptions, cut
from infinity_jax.text.characters import MAX_CHARACTERS

LONG = 'A cat. It sits on a mat! Is it 3.5 kg? Who knows. The end.'
SENTENCES = LONG.replace('! ', '!|').replace('? ', '?|').replace('. ', '.|').split('|')


def samples(captions, probability, count=400):
    rng = np.random.default_rng(0)
    return collections.Counter(captions.sample(rng, probability) for _ in range(count))


def test_text_is_cut_at_two_dashes():
    assert cut('a boat --ar 16:9 --v 5') == 'a boat' and cut('well-known') == 'well-known'
    assert cut(' --ar 16:9') == '--ar 16:9' and cut('-- a cat -- b') == '-- a cat -- b'
    assert not RecordCaptions(('', '\u200b'), ' \x01').usable
    assert RecordCaptions(('', 'a'), '').usable and RecordCaptions((), 'b').usable


def test_the_short_caption_has_its_probability():
    seen = samples(RecordCaptions(('short',), 'long'), 0.25)
    assert set(seen) == {'short', 'long'} and seen['short'] == pytest.approx(100, abs=25)


def test_an_empty_kind_is_replaced_by_the_other():
    assert set(samples(RecordCaptions((' ', 'a', 'b'), ''), 0.0)) == {'a', 'b'}
    assert set(samples(RecordCaptions(('',), 'long'), 1.0)) == {'long'}


def test_only_a_machine_written_caption_is_cut_after_a_sentence():
    assert set(samples(RecordCaptions((), LONG), 0.0)) == {LONG}
    cuts = samples(RecordCaptions((), LONG, machine_written=True), 0.0)
    assert set(cuts) == {' '.join(SENTENCES[:n]) for n in (3, 4, 5)}  # more than the lead of two
    assert min(cuts.values()) > 90  # evenly
    lead = samples(RecordCaptions((), LONG, machine_written=True), 1.0)
    assert set(lead) == {' '.join(SENTENCES[:2])}


def test_a_long_first_sentence_leads_alone():
    first = ' '.join(['word'] * 15) + '.'
    captions = RecordCaptions((), f'{first} Two. Three.', machine_written=True)
    assert set(samples(captions, 1.0)) == {first}
    assert set(samples(captions, 0.0)) == {f'{first} Two.', f'{first} Two. Three.'}


def test_a_text_of_megabytes_is_cut_before_it_is_split():
    text = 'A cat sits here. ' * 200_000
    captions = RecordCaptions((text,), text, machine_written=True)
    rng = np.random.default_rng(0)
    for probability in (0.0, 1.0):
        sample = captions.sample(rng, probability)
        assert text.startswith(sample) and len(sample) <= MAX_CHARACTERS
    assert len(cut(text)) > MAX_CHARACTERS - 20 and cut(text).endswith(
        ('here.', 'cat', 'sits', 'A')
    )
    assert len(cut('a' * 10**6)) == MAX_CHARACTERS
