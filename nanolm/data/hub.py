"""Corpora on the Hugging Face Hub, and the only module that knows ``datasets``.

Nothing here runs unless a Hub corpus was chosen and is not prepared yet. The Hub is asked once, with a deadline,
before ``datasets`` is let loose: its own retries take half a minute to give up. Without an answer, a copy in its
cache is used, if there is one.
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

from nanolm.config.schema import DataConfig
from nanolm.data.corpus import Document
from nanolm.data.local import checked_text, missing_column
from nanolm.data.permutation import uniforms
from nanolm.data.splits import deal_held_out
from nanolm.errors import DataError
from nanolm.files import sha256_of

PROBE_SECONDS = 4.0
SPLIT_OF_HUB_SPLIT = {"train": "train", "validation": "val", "test": "test"}
# Too large to download whole: read while it is downloaded, and again for the tokenizer.
STREAMED = ("fineweb_edu",)
# One row for each line of an article.
LINES = ("wikitext2", "wikitext103")

_HEADING = re.compile(r" = [^=\s](.*[^=\s])? = \n?")

logger = logging.getLogger(__name__)


class HubCorpus:
    """A dataset on the Hub, or in a local folder that ``data.hub_path`` names.

    Its validation and test splits are ours; calibration is a share of train, drawn by a keyed hash of the document's
    number. Where there is no validation split, the first ``data.held_out_documents`` of train are divided among val,
    calibration and test. ``data.max_documents`` counts in each split of the Hub.
    """

    def __init__(self, config: DataConfig):
        if not config.hub_path:
            raise DataError(f"data.hub_path: data={config.name} needs it; give the dataset as owner/name")
        self.config = config
        self.path: str = config.hub_path
        self.is_local = Path(self.path).is_dir()
        self._commit: str | None = None

    def identity(self) -> dict[str, Any]:
        # Not the commit that a branch stands for now: what is prepared has to be found without asking the Hub.
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

    def num_bytes(self) -> None:
        return None

    def num_undecided(self) -> int:
        return 0

    def check_unchanged(self) -> None:
        """The commit was pinned when the dataset was loaded."""

    def documents(self) -> Iterator[Document]:
        config, dataset = self.config, self._dataset
        for hub_split, split in SPLIT_OF_HUB_SPLIT.items():
            if hub_split not in dataset:
                continue
            texts = self._texts(dataset[hub_split], f"{self.path}, split {hub_split}")
            splits: Iterable[str] = itertools.repeat(split)
            if split == "train" and "validation" not in dataset:
                splits = itertools.chain(deal_held_out(config), splits)
            elif split == "train" and config.calibration_fraction > 0:
                draws = uniforms(f"calibration/{config.split_seed}")
                splits = ("calibration" if draw < config.calibration_fraction else "train" for draw in draws)
            for (place, text), name in zip(itertools.islice(texts, config.max_documents), splits, strict=False):
                yield Document(place, (text,), name)

    def _texts(self, rows: Iterable[dict[str, Any]], where: str) -> Iterator[tuple[str, str]]:
        texts = self._checked(rows, where)
        return articles(texts) if self.config.name in LINES else texts

    def _checked(self, rows: Iterable[dict[str, Any]], where: str) -> Iterator[tuple[str, str]]:
        """Place and text of each row."""
        column = self.config.text_column
        with _errors_of_datasets(where):
            for number, row in enumerate(rows, 1):
                place = f"{where}, row {number:,}"
                if column not in row:
                    raise missing_column(place, column, list(row))
                yield place, checked_text(row[column], place, column)

    @functools.cached_property
    def _dataset(self) -> dict[str, Any]:
        """The splits of the Hub by name; each gives its rows as dictionaries, as often as it is asked."""
        from datasets import disable_progress_bars, load_dataset

        streaming = self.config.name in STREAMED and not self.is_local
        cached_only = False if self.is_local else self._pin_commit(streaming)
        if not sys.stderr.isatty():
            disable_progress_bars()
        with _errors_of_datasets(self.path), _offline(cached_only):
            loaded = load_dataset(self.path, self.config.hub_name, revision=self._commit, streaming=streaming)
        if "train" not in loaded:
            raise DataError(f"data.hub_path: {self.path} has no split train, only {', '.join(map(str, loaded))}")
        return dict(loaded)

    def _pin_commit(self, streaming: bool) -> bool:
        """Find out which commit to read, from the Hub or else from the cache; True for the cache."""
        self._commit, unreachable = probe(self.path, self.config.hub_revision)
        if unreachable is None:
            return False
        cached = None if streaming else self._cached_commit()
        if cached is None or self.config.hub_revision not in (None, "main", cached):
            raise DataError(
                f"data={self.config.name}: the dataset {self.path} is on the Hugging Face Hub, which cannot be reached "
                f"({unreachable}), and there is no copy of it here. Connect to the network (HF_ENDPOINT names a "
                "mirror, HTTPS_PROXY a proxy); or set data.hub_path to a folder with a copy of the dataset; or train "
                "on files of your own with data=text data.path=FILE."
            )
        logger.warning("data=%s: %s: the copy in the cache is used, commit %s", self.config.name, unreachable, cached)
        self._commit = cached
        return True

    def _cached_commit(self) -> str | None:
        from datasets import load_dataset_builder

        with _offline(True):
            try:
                return str(load_dataset_builder(self.path, self.config.hub_name).hash)
            except Exception:  # whatever it says, there is no copy to read
                return None


def articles(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """WikiText's articles from its lines, each from its `` = Title = `` to the next, with the place of its first line.

    The rows of the Hub have an empty text where the original files have a line of one space; it is put back, so that
    the articles of a split, one after the other, are the original file byte for byte.
    """
    article: list[str] = []
    article_place, titled, after_blank = "", False, True
    for place, line in lines:
        if after_blank and _HEADING.fullmatch(line):
            if titled:
                yield article_place, "".join(article)
                article = []
            titled = True
        article_place = place if not article else article_place
        article.append(line or " \n")
        after_blank = not line.strip()
    if article:
        yield article_place, "".join(article)


def probe(path: str, revision: str | None) -> tuple[str | None, str | None]:
    """Ask the Hub, within seconds, for the commit of a dataset.

    Returns:
        The commit and None, or None and why the Hub cannot be reached.

    Raises:
        DataError: the Hub answers that there is no such dataset or revision, or that we may not read it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(HfApi().dataset_info(path, revision=revision, timeout=PROBE_SECONDS).sha)
        except Exception as error:  # judged below, in the thread that waits
            answers.append(error)

    # A thread, because looking up a name has no timeout of its own; a daemon, so that it cannot hold up the exit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    answer = answers[0] if answers else TimeoutError(f"no answer within {PROBE_SECONDS + 1:.0f} seconds")
    if isinstance(answer, GatedRepoError):
        raise DataError(f"data.hub_path: {path} is gated: ask for access on its page, then `hf auth login`")
    if isinstance(answer, RevisionNotFoundError):
        raise DataError(f"data.hub_revision: {path} has no revision {revision!r}")
    if isinstance(answer, RepositoryNotFoundError | HFValidationError):
        raise DataError(
            f"data.hub_path: there is no dataset {path!r} on the Hub, and no folder of that name here, or it is "
            "private: check the name, or `hf auth login`"
        )
    if isinstance(answer, Exception):
        return None, f"{type(answer).__name__}: {answer}".split("\n")[0]
    return answer, None


@contextlib.contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Keep ``datasets`` from asking the Hub, as HF_HUB_OFFLINE=1 does when it is set before the start."""
    import datasets.config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if offline:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _errors_of_datasets(where: str) -> Iterator[None]:
    """Whatever the library raises about a dataset, in words; it has no common class of errors."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}: cannot be read through datasets: {type(error).__name__}: {error}") from error
