"""A small sentencepiece model, as the released T5 folders have one."""

import io
import pathlib
import random

import sentencepiece

WORDS = 'red apple blue cat sits on the table with café glass of wine smiling face 🙂'.split()
TEXTS = [' '.join(random.Random(i).choices(WORDS, k=8)) for i in range(200)]


def write_sentencepiece(folder: pathlib.Path) -> sentencepiece.SentencePieceProcessor:
    """Trains `spiece.model` with T5's special tokens: <pad> 0, </s> 1, <unk> 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'spiece.model').write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
