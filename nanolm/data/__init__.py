"""Text in, batches of token ids out: corpora, tokenizers, prepared shards, and the loader."""

from nanolm.data.corpus import open_corpus
from nanolm.data.loader import Loader
from nanolm.data.prepare import prepare
from nanolm.data.prepared import PreparedCorpus, TokenSplit, open_prepared
from nanolm.data.tokenizer import Tokenizer, train_tokenizer
from nanolm.data.tokenizer_file import load_tokenizer

__all__ = [
    "Loader",
    "PreparedCorpus",
    "TokenSplit",
    "Tokenizer",
    "load_tokenizer",
    "open_corpus",
    "open_prepared",
    "prepare",
    "train_tokenizer",
]
