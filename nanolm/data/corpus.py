"""The corpus that a configuration names."""

from collections.abc import Callable
from typing import Any

from nanolm.config.schema import DataConfig, HubConfig, JsonlConfig, ParquetConfig, SotuConfig, TextConfig
from nanolm.data.documents import Corpus
from nanolm.data.hub import HubCorpus
from nanolm.data.local import JsonLinesCorpus, ParquetCorpus, TextCorpus
from nanolm.data.sotu import SotuCorpus

_CORPORA: dict[type[DataConfig], Callable[[Any], Corpus]] = {
    SotuConfig: SotuCorpus,
    TextConfig: TextCorpus,
    JsonlConfig: JsonLinesCorpus,
    ParquetConfig: ParquetCorpus,
    HubConfig: HubCorpus,
}


def open_corpus(config: DataConfig) -> Corpus:
    """Open a corpus, or raise a DataError if it is not there; its text is read later."""
    return _CORPORA[type(config)](config)
