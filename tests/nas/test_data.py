"""Splits, batch streams and what `load_dataset` makes of its arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.data import loading
from zoopt_nas.nas.data.batches import BatchStream, sequential_batches, split_indices
from zoopt_nas.nas.data.image_sets import Dataset, HostImageSet, ImageSet, Transform
from zoopt_nas.nas.data.loading import load_dataset

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered_images(n: int) -> ImageSet:
    """Image i is filled with i and labelled i."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4)
    return ImageSet(images.contiguous(), torch.arange(n))


PLAIN = Transform((0.0,), (1 / 255,), image_size=4, device=CPU)  # pixels stay what they are


def stream(n: int, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchStream:
    return BatchStream(
        numbered_images(n),
        torch.arange(n),
        batch_size,
        transform=PLAIN,
        generator=seeded(seed),
        drop_last=drop_last,
    )


def epoch_sizes(batches: BatchStream) -> list[int]:
    return [len(batches.next_batch()[1]) for _ in range(batches.n_batches)]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", data_dir=Path("unused"), device=CPU)


def test_images_on_the_host_give_the_same_batches(digits):
    train = digits.train
    host = HostImageSet(train.images, train.labels)

    def first_batches(image_set):
        transform = digits.transform(augment=True, cutout=2)
        batches = BatchStream(
            image_set, torch.arange(100), 32, transform=transform, generator=seeded()
        )
        return [batches.next_batch() for _ in range(6)]

    for (x, y), (images, labels) in zip(first_batches(train), first_batches(host), strict=True):
        assert torch.equal(x, images)
        assert torch.equal(y, labels)
    assert host.fetch(torch.tensor([3]))[0].is_contiguous()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_images_on_the_host_come_to_the_device(digits):
    host = HostImageSet(digits.train.images, digits.train.labels.to("cuda"))
    for start in range(0, 1400, 7):  # pinned memory is used again, but not before it is copied
        indices = torch.arange(start, start + 7)
        images, labels = host.fetch(indices)
        assert images.is_cuda
        assert torch.equal(images.cpu(), digits.train.images[indices])
        assert torch.equal(labels.cpu(), digits.train.labels[indices])


@pytest.mark.parametrize(("free", "stays"), [(None, False), (4000, False), (3999, True), (0, True)])
def test_large_images_stay_on_the_host(free, stays, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda device: free)
    assert loading._stays_on_host(1000, torch.device("cuda")) == stays
    assert not loading._stays_on_host(1000, CPU)  # where the host is the device


def test_a_data_set_stays_on_the_host_as_a_whole(digits, monkeypatch):
    monkeypatch.setattr(loading, "_stays_on_host", lambda n_bytes, device: n_bytes == 1437 * 64)
    loaded = load_dataset("digits", data_dir=Path("unused"), device=CPU)
    assert type(loaded.train) is HostImageSet
    assert type(loaded.test) is ImageSet
    assert torch.equal(loaded.train.images, digits.train.images)


def test_split_is_disjoint_complete_and_seeded():
    train, val = split_indices(101, 0.5, seeded())
    assert (len(train), len(val)) == (50, 51)  # rounded down, as the DARTS family does
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(101))
    again, _ = split_indices(101, 0.5, seeded())
    other, _ = split_indices(101, 0.5, seeded(1))
    assert torch.equal(train, again)
    assert set(train.tolist()) != set(other.tolist())
    assert set(train.tolist()) != set(range(50))


@pytest.mark.parametrize(
    ("n", "portion"), [(10, 0.0), (10, 1.0), (10, -0.1), (10, float("nan")), (10, 0.05), (1, 0.5)]
)
def test_split_into_nothing_is_refused(n, portion):
    with pytest.raises(InvalidValueError, match="train_portion"):
        split_indices(n, portion, seeded())


def test_an_epoch_covers_each_index_once_and_the_next_is_shuffled_anew():
    batches = stream(10, 4)
    assert batches.n_batches == 3
    epochs = []
    for _ in range(3):
        labels = torch.cat([batches.next_batch()[1] for _ in range(3)])
        assert sorted(labels.tolist()) == list(range(10))
        epochs.append(labels.tolist())
    assert epochs[0] != epochs[1] != epochs[2]


def test_images_go_with_their_labels():
    indices = torch.tensor([3, 5, 8, 13])
    batches = BatchStream(
        numbered_images(20), indices, 2, transform=PLAIN, generator=seeded(), drop_last=True
    )
    seen = []
    for _ in range(2):
        images, labels = batches.next_batch()
        assert images.shape == (2, 1, 4, 4)
        torch.testing.assert_close(images[:, 0, 2, 2], labels.float())
        seen += labels.tolist()
    assert sorted(seen) == [3, 5, 8, 13]


@pytest.mark.parametrize(
    ("n", "batch_size", "drop_last", "sizes"),
    [
        (10, 4, False, [4, 4, 2]),
        (10, 4, True, [4, 4]),
        (9, 4, False, [4, 4]),  # BatchNorm cannot take a batch of one
        (8, 4, False, [4, 4]),
        (3, 4, True, [3]),
        (3, 4, False, [3]),
        (1, 4, False, [1]),
        (3, 1, False, [1, 1, 1]),
    ],
)
def test_batch_sizes(n, batch_size, drop_last, sizes):
    batches = stream(n, batch_size, drop_last)
    assert batches.n_batches == len(sizes)
    assert epoch_sizes(batches) == sizes
    assert epoch_sizes(batches) == sizes


def test_a_stream_needs_an_index_and_a_batch_size():
    with pytest.raises(InvalidValueError, match="indices"):
        stream(0, 4)
    with pytest.raises(InvalidValueError, match="batch_size must be a positive integer, got 0"):
        stream(4, 0)


def digit_stream(digits: Dataset, seed: int) -> BatchStream:
    return BatchStream(
        digits.train,
        torch.arange(50),
        16,
        transform=digits.transform(cutout=2),
        generator=seeded(seed),
    )


@pytest.mark.parametrize("n_before", [0, 2, 4, 5])  # at a start, inside, at an end, beyond
def test_a_resumed_stream_is_bitwise_the_uninterrupted_one(digits, n_before):
    batches = digit_stream(digits, 0)
    for _ in range(n_before):
        batches.next_batch()
    state = batches.state_dict()
    expected = [batches.next_batch() for _ in range(9)]
    resumed = digit_stream(digits, 99)
    resumed.load_state_dict(state)
    for images, labels in expected:
        resumed_images, resumed_labels = resumed.next_batch()
        assert torch.equal(resumed_images, images)
        assert torch.equal(resumed_labels, labels)
    # The saved state does not move with either stream.
    once_more = digit_stream(digits, 7)
    once_more.load_state_dict(state)
    assert torch.equal(once_more.next_batch()[0], expected[0][0])


def test_state_survives_a_file(digits, tmp_path):
    batches = digit_stream(digits, 0)
    batches.next_batch()
    torch.save(batches.state_dict(), tmp_path / "state.pt")
    expected, _ = batches.next_batch()
    resumed = digit_stream(digits, 1)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(resumed.next_batch()[0], expected)


def test_a_foreign_state_is_refused():
    batches = stream(10, 4)
    with pytest.raises(InvalidValueError, match="permutation"):
        batches.load_state_dict(stream(9, 4).state_dict())
    with pytest.raises(InvalidValueError, match=r"n_used must lie in 0\.\.3, got 4"):
        batches.load_state_dict(batches.state_dict() | {"n_used": 4})


def test_the_same_seed_gives_the_same_batches_and_the_global_generator_rests(digits):
    before = torch.get_rng_state()
    one, same, other = (digit_stream(digits, seed) for seed in (0, 0, 1))
    for _ in range(6):
        images, labels = one.next_batch()
        same_images, same_labels = same.next_batch()
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
        assert not torch.equal(images, other.next_batch()[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_sequential_batches_are_in_order_and_complete():
    image_set = numbered_images(10)
    labels = [labels.tolist() for _, labels in sequential_batches(image_set, None, 4, PLAIN)]
    assert labels == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    chosen = torch.tensor([7, 2, 9])
    (images, labels), (_, rest) = sequential_batches(image_set, chosen, 2, PLAIN)
    assert (labels.tolist(), rest.tolist()) == ([7, 2], [9])
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([7.0, 2.0]))


def test_digits_are_normalised_by_their_training_images(digits):
    batches = sequential_batches(digits.train, None, 500, digits.transform(augment=False))
    images = torch.cat([images for images, _ in batches])
    assert abs(float(images.mean())) < 1e-5
    assert abs(float(images.std(correction=0)) - 1) < 1e-5


def test_n_train_takes_nested_subsets(digits):
    def labels(n: int) -> torch.Tensor:
        options = {"data_dir": Path("unused"), "device": CPU, "splits": ("train",)}
        return load_dataset("digits", n_train=n, **options).train.labels

    assert len(labels(100)) == 100
    assert torch.equal(labels(300)[:100], labels(100))
    assert torch.equal(labels(1437).sort().values, digits.train.labels.sort().values)
    with pytest.raises(InvalidValueError, match=r"n_train must be at most 1437.*got 1438"):
        labels(1438)
    with pytest.raises(InvalidValueError, match="n_train must be a positive integer, got 0"):
        labels(0)


def test_image_size_resizes_and_the_padding_follows():
    dataset = load_dataset("digits", data_dir=Path("unused"), device=CPU, image_size=16)
    assert dataset.train.images.shape == (1437, 1, 16, 16)
    assert dataset.augmentation.crop_padding == 2
    assert dataset.transform()(dataset.test.images[:3], seeded()).shape == (3, 1, 16, 16)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"splits": ("test",)}, "splits must be"),
        ({"splits": ()}, "splits must be"),
        ({"image_size": 0}, "image_size must be a positive integer, got 0"),
    ],
)
def test_wrong_arguments(option, message):
    with pytest.raises(InvalidValueError, match=message):
        load_dataset("digits", data_dir=Path("unused"), device=CPU, **option)


def test_fetch_returns_pixels_and_labels_in_the_order_asked():
    images, labels = numbered_images(6).fetch(torch.tensor([4, 0, 4]))
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images[:, 0, 1, 1].numpy(), [4, 0, 4])
    assert labels.tolist() == [4, 0, 4]
