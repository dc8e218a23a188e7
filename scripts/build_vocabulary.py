"""Trains the demo's Unigram vocabulary on captions and stores it as a Hugging Face folder.

python scripts/build_vocabulary.py infinity_jax/demo/text_encoder
"""

import collections
import json
import math
import pathlib
import string
import sys

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from infinity_jax.emoji import artwork, image_spec

SPECIAL_TOKENS = ('<pad>', '</s>', '<unk>')  # ids 0, 1, 2, as in T5
VOCABULARY_SIZE = 1500
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation  # all are pieces


def corpus() -> list[str]:
    """The name of each emoji of `all`, and a caption that mentions size, place and background."""
    backgrounds = tuple(image_spec.BACKGROUNDS)
    sizes, places = tuple(image_spec.SIZES), image_spec.PLACES
    texts = []
    for i, each in enumerate(artwork.subset('all')):
        size = sizes[i % len(sizes)]
        place = 'centre' if size == 'large' else places[i % len(places)]
        background = backgrounds[i % len(backgrounds)]
        spec = image_spec.ImageSpec(each.name, background, size, place, True, True)
        texts += [each.name, image_spec.caption(spec)]
    return texts


def train(vocabulary_size: int = VOCABULARY_SIZE) -> Tokenizer:
    """A lower-casing Unigram tokenizer that appends `</s>`.

    Every word of the corpus is one piece, so that captions are short and an emoji has few
    embeddings to learn. The other pieces are word parts from Unigram training, for words outside
    the captions. Unigram training alone would cut the rare words of the corpus into three pieces or
    more.
    """
    texts = corpus()
    counts = collections.Counter(word for text in texts for word in text.split())
    words = [(f'\u2581{word}', math.log(n / counts.total())) for word, n in counts.most_common()]
    words.sort(key=_by_score)
    parts = _train_parts(texts, vocabulary_size - len(words))
    whole_words = {piece for piece, _ in words}
    # Less likely than any word, so that a word of the corpus is never cut.
    lowered = [(piece, score + words[-1][1]) for piece, score in parts if piece not in whole_words]
    specials = [(token, 0.0) for token in SPECIAL_TOKENS]
    tokenizer = _untrained(models.Unigram(specials + words + lowered, unk_id=2))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single='$A </s>', special_tokens=[('</s>', 1)]
    )
    return tokenizer


def _by_score(piece: tuple[str, float]) -> tuple[float, str]:
    return -piece[1], piece[0]


def _untrained(model: models.Unigram) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace('\u2019', "'"),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _train_parts(texts: list[str], count: int) -> list[tuple[str, float]]:
    """`count` word parts with their log-probabilities, all of `CHARACTERS` among them."""
    tokenizer = _untrained(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=count, initial_alphabet=list(CHARACTERS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = dict(json.loads(tokenizer.to_str())['model']['vocab'])
    # The trainer scores unseen characters in the order of a hash table. Counts (at least one per
    # character), rounding and sorting make the pieces the same in every run.
    counts = collections.Counter(''.join(texts) + CHARACTERS)
    pieces |= {each: math.log(counts[each] / counts.total()) for each in CHARACTERS}
    return sorted(((text, round(score, 2)) for text, score in pieces.items()), key=_by_score)


def save(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Writes the three files that `transformers.AutoTokenizer.from_pretrained(folder)` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    special = dict(zip(('pad_token', 'eos_token', 'unk_token'), SPECIAL_TOKENS, strict=True))
    settings = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'model_max_length': 512,
        'clean_up_tokenization_spaces': False,
        **special,
    }
    for name, content in (('tokenizer_config', settings), ('special_tokens_map', special)):
        (folder / f'{name}.json').write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    trained = train()
    save(trained, pathlib.Path(sys.argv[1]))
    print(f'{sys.argv[1]}: {trained.get_vocab_size()} pieces')
