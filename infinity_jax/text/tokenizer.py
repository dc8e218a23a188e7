"""Prompts to token ids, with the tokenizer of a Hugging Face folder or repository."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from infinity_jax.errors import UserError
from infinity_jax.runtime.hub import check_content, local_folder
from infinity_jax.text.characters import is_blank, readable
from infinity_jax.text.pretrained import tokenizer_json

TOKENIZER_FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'spiece.model',
)
END_TOKEN = '</s>'
UNKNOWN_TOKEN = '<unk>'


class TextTokenizer:
    """Splits prompts into the ids of a Hugging Face tokenizer, always ending in the end token.

    Attributes:
      files: contents of the tokenizer's files by name.
      end_id: id of the end token.
      vocab_size: number of tokens, added ones included.
    """

    def __init__(self, files: dict[str, bytes], source: str = 'tokenizer.json'):
        """Reads `tokenizer.json`.

        Args:
          files: contents of the folder's tokenizer files by name.
          source: name of the folder, for error messages.

        Raises:
          UserError: tokenizer.json is missing, malformed or has no end token.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(files['tokenizer.json'].decode())
        except KeyError:
            raise UserError(
                f'{source}: no tokenizer.json and no spiece.model; copy the files of the T5 '
                'tokenizer there, or name another folder or repository'
            ) from None
        except Exception as error:  # the library raises bare Exception on a malformed file
            raise UserError(f'{source}: tokenizer.json is not a tokenizer ({error})') from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.files = files
        end_id = self._tokenizer.token_to_id(END_TOKEN)
        if end_id is None:
            raise UserError(f'{source}: its vocabulary lacks {END_TOKEN}; wanted a T5 tokenizer')
        self.end_id: int = end_id
        self._unknown_id: int | None = self._tokenizer.token_to_id(UNKNOWN_TOKEN)
        self.vocab_size: int = self._tokenizer.get_vocab_size()

    @classmethod
    def from_folder(cls, folder: str | Path) -> 'TextTokenizer':
        """Reads the tokenizer of a Hugging Face folder.

        Args:
          folder: a folder, or org/name of a repository, of which only the tokenizer is downloaded.
            With `spiece.model` alone, transformers converts it; `files` then has the result.

        Raises:
          UserError: there is no such folder or repository, or no readable tokenizer in it.
        """
        local = local_folder(folder, files=(*TOKENIZER_FILES, 'config.json'))
        present = [local / name for name in TOKENIZER_FILES if (local / name).is_file()]
        for path in present:
            check_content(path)
        files = {path.name: path.read_bytes() for path in present}
        if 'spiece.model' in files and 'tokenizer.json' not in files:
            files['tokenizer.json'] = tokenizer_json(local)
        return cls(files, str(folder))

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into `folder`, with the bytes that were read."""
        for name, content in self.files.items():
            (Path(folder) / name).write_bytes(content)

    def token_counts(self, prompts: Sequence[str], max_length: int = 512) -> list[int]:
        """Number of tokens of each prompt, the end token included, before truncation.

        Of a text that is much longer than `max_length` tokens, only the beginning is counted.
        """
        encodings = self._encode(prompts, max_length)
        ends = [e.ids[-1:] == [self.end_id] for e in encodings]
        return [len(e.ids) + (not end) for e, end in zip(encodings, ends, strict=True)]

    def unknown_characters(self, prompts: Sequence[str], max_length: int = 512) -> list[str]:
        """The characters of each prompt that the vocabulary lacks, each once.

        All characters of an unknown token count. Spaces are never among them.
        """
        found = []
        for prompt, encoding in zip(prompts, self._encode(prompts, max_length), strict=True):
            pairs = zip(encoding.ids, encoding.offsets, strict=True)
            spans = [span for token, span in pairs if token == self._unknown_id]
            text = ''.join(prompt[start:end] for start, end in spans)
            found.append(''.join(dict.fromkeys(c for c in text if c != ' ')))
        return found

    def _encode(self, prompts: Sequence[str], max_length: int) -> list[tokenizers.Encoding]:
        """Encodes prompts without truncation, but no more than what may be read."""
        return self._tokenizer.encode_batch([readable(prompt, max_length) for prompt in prompts])

    def __call__(
        self, prompts: list[str], max_length: int, pad_to: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokenizes a batch.

        Args:
          prompts: none of them blank.
          max_length: longer prompts are truncated to this many tokens, the end token included; of
            prompts of many more characters, only the beginning is tokenized, see `readable`.
          pad_to: number of columns T of the result; None takes the longest prompt.

        Returns:
          ids_BT int32, zero after each prompt's end, and lengths_B int32, end token included.

        Raises:
          UserError: a prompt is blank, or longer than `pad_to`.
        """
        blank = [i for i, prompt in enumerate(prompts) if is_blank(prompt)]
        if blank or not prompts:
            which = f'prompt {blank[0] + 1} of {len(prompts)}' if blank else 'the list of prompts'
            raise UserError(f'{which} is empty; write what the image should show')
        rows = []
        for encoding in self._encode(prompts, max_length):
            ids = encoding.ids
            if ids and ids[-1] == self.end_id:
                ids = ids[:-1]
            rows.append([*ids[: max_length - 1], self.end_id])
        lengths_B = np.array([len(row) for row in rows], np.int32)
        columns = int(lengths_B.max()) if pad_to is None else pad_to
        if columns < lengths_B.max():
            raise UserError(
                f'pad_to {columns} is below the {lengths_B.max()} tokens of the longest prompt; '
                f'raise it or lower max_length {max_length}'
            )
        ids_BT = np.zeros((len(rows), columns), np.int32)
        for row, ids in zip(ids_BT, rows, strict=True):
            row[: len(ids)] = ids
        return ids_BT, lengths_B
