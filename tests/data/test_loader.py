import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.data.loader import Loader
from nanolm.data.prepared import DocumentIndex
from nanolm.errors import DataError


class Numbers:
    """A split whose stored id number i is i, so that a batch shows where it comes from; with no file behind it."""

    name = "train"

    def __init__(self, num_tokens, document_length=10):
        self.num_tokens = num_tokens
        starts = np.arange(0, num_tokens, document_length)
        self.documents = DocumentIndex(starts, np.diff([*starts, num_tokens]), np.ones(len(starts), dtype=np.int64))

    def read(self, start, length):
        assert 0 <= start <= start + length <= self.num_tokens + 1
        return np.arange(start, start + length, dtype=np.int64)


sizes = st.tuples(st.integers(1, 12), st.integers(0, 120), st.integers(1, 9)).map(
    lambda drawn: (drawn[0], drawn[0] + drawn[1], drawn[2])
)


def windows_of_epoch(loader, epoch):
    """First targets of an epoch's windows, gathered from whole batches by their numbers."""
    per_epoch, batch_size = loader.windows_per_epoch, loader.batch_size
    first, last = epoch * per_epoch, (epoch + 1) * per_epoch
    starts = [
        (step * batch_size + row, start)
        for step in range(first // batch_size, -(-last // batch_size))
        for row, start in enumerate(loader.batch(step)[0][:, 0].tolist())
    ]
    return [start for number, start in starts if first <= number < last]


@given(sizes, st.integers(0, 3), st.integers(0, 1000))
def test_an_epoch_covers_all_but_fewer_than_two_windows_with_disjoint_windows(size, epoch, seed):
    length, num_tokens, batch_size = size
    loader = Loader(Numbers(num_tokens), length, batch_size, seed)
    targets = np.concatenate(
        [np.arange(start, start + length) for start in windows_of_epoch(loader, epoch)], dtype=np.int64
    )
    assert len(np.unique(targets)) == len(targets), "disjoint"
    assert targets.min() >= 0
    assert targets.max() < num_tokens
    assert num_tokens - len(targets) < 2 * length


@given(sizes, st.integers(0, 50), st.integers(0, 50), st.integers(0, 1000), st.data())
def test_any_division_into_rows_gives_the_same_global_batch_whatever_was_asked_before(size, step, other, seed, data):
    length, num_tokens, batch_size = size
    cuts = sorted(data.draw(st.lists(st.integers(0, batch_size), max_size=4)))
    used = Loader(Numbers(num_tokens), length, batch_size, seed)
    used.batch(other)
    whole = used.batch(step)
    for number in (0, 1):
        parts = [
            Loader(Numbers(num_tokens), length, batch_size, seed).rows(step, first, last)[number].numpy()
            for first, last in zip([0, *cuts], [*cuts, batch_size], strict=True)
        ]
        assert np.array_equal(np.concatenate(parts), whole[number].numpy())


def test_targets_follow_their_inputs():
    inputs, targets = Loader(Numbers(1000), 16, 4, 0).batch(3)
    assert inputs.shape == targets.shape == (4, 16)
    assert str(inputs.dtype) == str(targets.dtype) == "torch.int64"
    assert np.array_equal(inputs.numpy() + 1, targets.numpy())


def test_every_offset_and_order_comes_up():
    loader = Loader(Numbers(40), 8, 4, 0)
    epochs = [windows_of_epoch(loader, epoch) for epoch in range(300)]
    assert {min(epoch) for epoch in epochs} == set(range(40 - 4 * 8 + 1)), "every offset in [0, n - W T]"
    orders = {tuple(np.argsort(epoch)) for epoch in epochs}
    assert len(orders) > 15, "of the 24 orders of four windows"


def test_seeds_and_epochs_differ():
    def order(seed, epoch):
        return tuple(windows_of_epoch(Loader(Numbers(5000), 8, 4, seed), epoch))

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


@given(sizes, st.integers(0, 20), st.integers(1, 15))
def test_documents_are_those_of_the_targets(size, step, document_length):
    length, num_tokens, batch_size = size
    loader = Loader(Numbers(num_tokens, document_length), length, batch_size, 0)
    inputs = loader.batch(step)[0].numpy()  # the input of target i is stored id i, so it is i
    assert loader.documents(step).tolist() == sorted(set((inputs // document_length).reshape(-1).tolist()))


def test_too_short_a_split_is_refused_with_its_numbers():
    assert Loader(Numbers(64), 64, 1, 0).batch(0)[0].shape == (1, 64)
    with pytest.raises(DataError, match=r"trainer\.sequence_length=64.*63 tokens"):
        Loader(Numbers(63), 64, 1, 0)


@settings(deadline=None)
@given(st.integers(1 << 40, 1 << 50))
def test_any_size_takes_no_more_memory(num_tokens):
    """With anything kept for each window this would end the process: there are up to 2^40 of them."""

    class Endless(Numbers):
        def __init__(self):
            self.num_tokens = num_tokens

    assert Loader(Endless(), 1024, 8, 0).batch(10**6)[0].shape == (8, 1024)
