"""Text as the model reads it: cleaning, WordPiece tokens, and a vocabulary learnt from captions.

Facts: BLIP.md sections 1.1 and 4.
"""

import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from blip.batch import SpecialTokens
from blip.errors import ConfigError, DataError
from blip.files import write_text
from blip.hub import hub_file

VOCABULARY = "vocab.txt"

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_WHITESPACE = re.compile(r"\s{2,}")
_SPACE_BEFORE_MARK = re.compile(r" ([.?!,])")
_SPACE_BEFORE_CONTRACTION = re.compile(r" (n't|'m|'s|'ve|'re)")

_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BLIP_SPECIAL = ("[DEC]", "[ENC]")  # appended to the vocabulary, in this order

_WORD_PIECE = {"unk_token": "[UNK]", "max_input_chars_per_word": 100}
_NORMALIZER = normalizers.BertNormalizer(lowercase=True)  # strips accents too
_PRE_TOKENIZER = pre_tokenizers.BertPreTokenizer()


def clean_caption(text: str, max_words: int) -> str:
    """Clean a caption: lower case, some punctuation to spaces, `max_words` words at most."""
    text = _PUNCTUATION.sub(" ", text.lower())
    text = _WHITESPACE.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_question(text: str, max_words: int) -> str:
    """Clean a question: the same punctuation is deleted, and inner double spaces stay."""
    text = _PUNCTUATION.sub("", text.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:max_words])


def has_words(text: str) -> bool:
    """Tell whether cleaning leaves anything of a text."""
    return bool(_PUNCTUATION.sub("", text).strip())


class Tokenizer:
    """BERT's WordPiece, lower-casing and stripping accents, with [DEC] and [ENC] appended.

    Args:
        vocab: A `vocab.txt`, one piece a line, its id the line's number from 0.

    Raises:
        DataError: The file cannot be read, or lacks one of BERT's special tokens.
    """

    def __init__(self, vocab: Path) -> None:
        pieces = _read_vocabulary(vocab)
        self._tokenizer = tokenizers.Tokenizer(models.WordPiece(pieces, **_WORD_PIECE))
        self._tokenizer.normalizer = _NORMALIZER
        self._tokenizer.pre_tokenizer = _PRE_TOKENIZER
        self._tokenizer.decoder = decoders.WordPiece(cleanup=False)
        present = [token for token in _BERT_SPECIAL if token in pieces]
        self._tokenizer.add_special_tokens([*present, *_BLIP_SPECIAL])
        self.special = SpecialTokens(
            pad=pieces["[PAD]"],
            cls=pieces["[CLS]"],
            sep=pieces["[SEP]"],
            dec=self._id("[DEC]"),
            enc=self._id("[ENC]"),
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids, [DEC] and [ENC] among them."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Encode texts as `[CLS] ... [SEP]`, padded to the longest.

        Args:
            texts: Cleaned texts.
            max_tokens: Where to cut; [CLS] and [SEP] count and are kept.

        Returns:
            Token ids (B, L) int64 and attention mask (B, L) int64, 1 at tokens and 0 at padding.
        """
        rows = [self._pieces(text)[: max_tokens - 2] for text in texts]
        length = 2 + max((len(row) for row in rows), default=0)
        ids = np.full((len(rows), length), self.special.pad, dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row) + 2] = [self.special.cls, *row, self.special.sep]
            mask[i, : len(row) + 2] = 1
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def prompt(self, text: str) -> list[int]:
        """Encode the words that a caption begins with, as the decoder reads them: `[DEC] ...`."""
        return [self.special.dec, *self._pieces(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of token ids, without special tokens and spaces before punctuation."""
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        text = _SPACE_BEFORE_MARK.sub(r"\1", text).replace(" ' ", "'")
        return _SPACE_BEFORE_CONTRACTION.sub(r"\1", text)

    def _id(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        assert number is not None
        return int(number)

    def _pieces(self, text: str) -> list[int]:
        # One text at a time: the library's batching starts threads, which do not survive a fork.
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def find_vocabulary(name: str) -> Path:
    """Find a vocabulary: a file, or that of a model on the Hugging Face hub or in its cache.

    Raises:
        ConfigError: It is neither.
    """
    if Path(name).is_file():
        return Path(name)
    return hub_file(f"vocabulary {name!r}", name, VOCABULARY)


def train_vocabulary(texts: Iterable[str], size: int, out: Path) -> None:
    """Learn word pieces and write `out/vocab.txt`; equal texts in any order give equal bytes.

    The most frequent pair of neighbouring pieces becomes a piece, again and again, until there are
    `size` pieces or no pair is left that occurs twice. The tokenizers library trains too, but
    breaks ties by the order of a hash table, another one in every process; here the alphabet does.

    Args:
        texts: Cleaned captions.
        size: Number of pieces at most, BERT's five special tokens included, [DEC] and [ENC] not.
        out: The folder.

    Raises:
        ConfigError: `size` leaves no room for single characters.
        DataError: There is no word in the texts.
    """
    words = Counter(word for text in texts for word in _words(text))
    if not words:
        raise DataError(
            "no words to learn a vocabulary from: the captions are empty or all dropped"
        )
    room = size - len(_BERT_SPECIAL)
    if room < 2:
        raise ConfigError(f"tokenizer.size {size} leaves no room for pieces: give at least 100")
    characters = _characters(words, limit=max(room // 2, 1))
    known = {
        word: count for word, count in words.items() if all(c in characters for c in _split(word))
    }
    pieces = dict.fromkeys([*_BERT_SPECIAL, *sorted(characters)])
    for piece in _merge(known):
        if len(pieces) >= size:
            break
        pieces[piece] = None
    write_text(out / VOCABULARY, "\n".join(pieces) + "\n")


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a vocabulary in UTF-8: {error.reason}") from None
    pieces = {line.rstrip("\r"): i for i, line in enumerate(lines) if line}
    missing = [token for token in _BERT_SPECIAL[:4] if token not in pieces]
    if missing:
        raise DataError(f"{path}: not a BERT vocabulary: {', '.join(missing)} missing")
    return pieces


def _words(text: str) -> list[str]:
    return [word for word, _ in _PRE_TOKENIZER.pre_tokenize_str(_NORMALIZER.normalize_str(text))]


def _split(word: str) -> list[str]:
    return [word[0], *("##" + character for character in word[1:])]


def _characters(words: Counter[str], limit: int) -> set[str]:
    """Give the most frequent single-character pieces; a word with a rarer one stays unknown."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for piece in _split(word):
            counts[piece] += count
    return set(sorted(counts, key=lambda piece: (-counts[piece], piece))[:limit])


def _merge(words: dict[str, int]) -> Iterable[str]:
    """Give new pieces: the most frequent pair of neighbours first, ties by alphabet."""
    splits = [_split(word) for word in words]
    frequencies = list(words.values())
    counts: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for i, split in enumerate(splits):
        for pair in itertools.pairwise(split):
            counts[pair] += frequencies[i]
            places[pair].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while heap:
        count, pair = heapq.heappop(heap)
        if -count != counts[pair]:
            continue  # an entry that a later merge made stale
        if -count < 2:
            return
        merged = pair[0] + pair[1].removeprefix("##")
        yield merged
        changed = set()
        for i in places.pop(pair):
            before = splits[i]
            after = splits[i] = _replace(before, pair, merged)
            for old in itertools.pairwise(before):
                counts[old] -= frequencies[i]
                changed.add(old)
            for new in itertools.pairwise(after):
                counts[new] += frequencies[i]
                places[new].add(i)
                changed.add(new)
        for touched in changed:
            heapq.heappush(heap, (-counts[touched], touched))


def _replace(split: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    result: list[str] = []
    i = 0
    while i < len(split):
        if tuple(split[i : i + 2]) == pair:
            result.append(merged)
            i += 2
        else:
            result.append(split[i])
            i += 1
    return result
