"""Corpora on the Hugging Face Hub, and the only module that knows ``datasets``.

The Hub is asked for the commit of a dataset once, with a deadline, because the retries of ``datasets`` take half a
minute to give up. Without an answer, a copy in its cache is used, if there is one.
"""

import contextlib
import functools
import itertools
import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nanolm.config.schema import HubConfig
from nanolm.data.documents import Corpus, Document, readable, text_of
from nanolm.data.permutation import uniforms
from nanolm.data.splits import assign_held_out
from nanolm.errors import DataError
from nanolm.files import sha256_of

PROBE_SECONDS = 4.0
SPLIT_OF_HUB_SPLIT = {"train": "train", "validation": "val", "test": "test"}
# Too large to download whole: read while it is downloaded, and again for the tokenizer.
STREAMED = ("fineweb_edu",)
# These have a row for each line of an article.
LINES = ("wikitext2", "wikitext103")

_HEADING = re.compile(r" = [^=\s](.*[^=\s])? = \n?")

logger = logging.getLogger(__name__)


class HubCorpus(Corpus):
    """A dataset on the Hub, or in a local folder that ``data.hub_path`` names.

    Its validation and test splits become val and test; calibration is a share of train, drawn by a keyed hash of the
    document's number. Without a validation split, the first ``data.held_out_documents`` of train are divided among
    val, calibration and test. ``data.max_documents`` counts in each split of the Hub.
    """

    def __init__(self, config: HubConfig):
        self.config = config
        self.path = config.hub_path
        self.is_local = Path(self.path).is_dir()
        self._commit: str | None = None

    def identity(self) -> dict[str, Any]:
        # Without the present commit of a branch, so that a prepared corpus is found without asking the Hub.
        where: dict[str, Any] = {"hub_path": self.path, "hub_revision": self.config.hub_revision}
        if self.is_local:
            files = sorted(file for file in Path(self.path).rglob("*") if file.is_file())
            where = {"files": [[sha256_of(file), file.stat().st_size] for file in files]}
        return {
            **where,
            "hub_name": self.config.hub_name,
            "text_column": self.config.text_column,
            "held_out_documents": self.config.held_out_documents,
        }

    def source(self) -> dict[str, Any]:
        return {**self.identity(), "hub_path": self.path, "commit": self._commit}

    def documents(self) -> Iterator[Document]:
        config, dataset = self.config, self._dataset
        for hub_split, split in SPLIT_OF_HUB_SPLIT.items():
            if hub_split not in dataset:
                continue
            texts = self._texts(dataset[hub_split], f"{self.path}, split {hub_split}")
            if config.name in LINES:
                texts = articles(texts)
            splits: Iterable[str] = itertools.repeat(split)
            if split == "train" and "validation" not in dataset:
                splits = itertools.chain(assign_held_out(config), splits)
            elif split == "train" and config.calibration_fraction > 0:
                draws = uniforms(f"calibration/{config.split_seed}")
                splits = ("calibration" if draw < config.calibration_fraction else "train" for draw in draws)
            for (place, text), name in zip(itertools.islice(texts, config.max_documents), splits, strict=False):
                yield Document(place, (text,), name)

    def _texts(self, rows: Iterable[dict[str, Any]], where: str) -> Iterator[tuple[str, str]]:
        """Read the place and text of each row."""
        with readable(where, Exception):  # the library has no common class of errors
            for number, row in enumerate(rows, 1):
                place = f"{where}, row {number:,}"
                yield place, text_of(row, self.config.text_column, place)

    @functools.cached_property
    def _dataset(self) -> dict[str, Any]:
        """Load the splits of the Hub by name; each gives its rows as dictionaries, as often as it is read."""
        from datasets import disable_progress_bars, load_dataset

        streaming = self.config.name in STREAMED and not self.is_local
        offline: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if not self.is_local:
            try:
                self._commit = find_commit(self.path, self.config.hub_revision)
            except ConnectionError as unreachable:
                self._commit, offline = self._cached_commit(str(unreachable), streaming), _offline()
        if not sys.stderr.isatty():
            disable_progress_bars()
        with readable(self.path, Exception), offline:
            loaded = load_dataset(self.path, self.config.hub_name, revision=self._commit, streaming=streaming)
        if "train" not in loaded:
            raise DataError(f"data.hub_path: {self.path} has no split train, only {', '.join(map(str, loaded))}")
        return dict(loaded)

    def _cached_commit(self, unreachable: str, streaming: bool) -> str:
        """Find the commit of the copy in the cache of ``datasets``, as the Hub is ``unreachable``."""
        from datasets import load_dataset_builder

        commit = None
        with _offline(), contextlib.suppress(Exception):  # of whatever class: there is no copy to read
            commit = None if streaming else str(load_dataset_builder(self.path, self.config.hub_name).hash)
        if commit is None or self.config.hub_revision not in (None, "main", commit):
            raise DataError(
                f"data={self.config.name}: {self.path} is not in the cache, and the Hugging Face Hub cannot be reached "
                f"({unreachable}). Connect to the network (HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy), set "
                "data.hub_path to a folder with a copy, or train on files of your own: data=text data.path=FILE."
            )
        logger.warning("data=%s: %s: reading commit %s from the cache", self.config.name, unreachable, commit)
        return commit


def articles(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Join the lines of WikiText into articles, from one `` = Title = `` to the next, with the place of the first line.

    Rows of the Hub are empty where the original files have a line of one space. It is put back, so that the articles
    of a split, one after the other, are the original file byte for byte.
    """
    article: list[str] = []
    article_place, has_title, after_blank = "", False, True
    for place, line in lines:
        if after_blank and _HEADING.fullmatch(line):
            if has_title:
                yield article_place, "".join(article)
                article = []
            has_title = True
        article_place = article_place if article else place
        article.append(line or " \n")
        after_blank = not line.strip()
    if article:
        yield article_place, "".join(article)


def find_commit(path: str, revision: str | None) -> str:
    """Ask the Hub, within seconds, for the commit of a dataset.

    Raises:
        ConnectionError: the Hub cannot be reached, and why.
        DataError: there is no such dataset or revision, or we may not read it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(HfApi().dataset_info(path, revision=revision, timeout=PROBE_SECONDS).sha)
        except Exception as error:  # handled below, in the thread that waits
            answers.append(error)

    # A thread, because looking up a name has no timeout of its own; a daemon, so that it cannot hold up the exit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    match answers[0] if answers else TimeoutError(f"no answer within {PROBE_SECONDS + 1:.0f} seconds"):
        case str(commit):
            return commit
        case GatedRepoError():
            raise DataError(f"data.hub_path: {path} is gated: ask for access on its page, then `hf auth login`")
        case RevisionNotFoundError():
            raise DataError(f"data.hub_revision: {path} has no revision {revision!r}")
        case RepositoryNotFoundError() | HFValidationError():
            raise DataError(
                f"data.hub_path: expected a folder or a dataset on the Hub, found neither for {path!r}: check the "
                "name, or if the dataset is private, `hf auth login`"
            )
        case error:
            raise ConnectionError(f"{type(error).__name__}: {error}".split("\n")[0])


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep ``datasets`` from asking the Hub, as HF_HUB_OFFLINE=1 does when it is set before the start."""
    import datasets.config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
