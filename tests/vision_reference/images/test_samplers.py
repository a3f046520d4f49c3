"""Every sample once per epoch, the same pixels whatever the number of processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_reference.errors import UserError
from vision_reference.images.samplers import EvalBatchSampler, TrainBatchSampler, global_batch_sizes

sizes = {"num_samples": st.integers(8, 500), "batch_size": st.integers(1, 40), "world_size": st.integers(1, 8)}


def epoch_of(num_samples, batch_size, world_size, epoch=0, seed=1, **options):
    samplers = [
        TrainBatchSampler(num_samples, batch_size, seed=seed, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    return [list(sampler.epoch(epoch)) for sampler in samplers]


@given(**sizes)
def test_training_sees_every_sample_exactly_once_over_all_processes(num_samples, batch_size, world_size):
    seen = [
        index for batches in epoch_of(num_samples, batch_size, world_size) for batch in batches for index, _ in batch
    ]
    assert sorted(seen) == list(range(num_samples))


@given(**sizes)
def test_processes_take_equally_many_steps_of_nearly_equal_size(num_samples, batch_size, world_size):
    per_rank = epoch_of(num_samples, batch_size, world_size)
    assert len({len(batches) for batches in per_rank}) == 1
    for step, total in enumerate(global_batch_sizes(num_samples, batch_size, world_size)):
        lengths = [len(batches[step]) for batches in per_rank]
        assert sum(lengths) == total
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) >= 1
        assert max(lengths) <= max(2, batch_size)


def test_batches_are_full_but_for_the_last():
    assert global_batch_sizes(1000, 100, 3) == [300, 300, 300, 100]
    assert global_batch_sizes(600, 100, 3) == [300, 300]


def test_a_last_batch_too_small_for_batch_normalization_shares_with_its_neighbour():
    assert global_batch_sizes(101, 50, 1) == [50, 26, 25]
    assert global_batch_sizes(102, 50, 1) == [50, 50, 2]
    assert global_batch_sizes(101, 50, 2) == [51, 50]
    assert global_batch_sizes(101, 1, 1) == [1] * 101
    assert global_batch_sizes(8, 1, 3) == [3, 5]


@given(**sizes, epoch=st.integers(0, 300))
def test_pixels_do_not_depend_on_the_number_of_processes(num_samples, batch_size, world_size, epoch):
    many = {
        key for batches in epoch_of(num_samples, batch_size, world_size, epoch) for batch in batches for key in batch
    }
    one = {key for batch in epoch_of(num_samples, batch_size, 1, epoch)[0] for key in batch}
    assert many == one


def test_order_and_augmentation_change_with_epoch_and_seed_and_repeat_otherwise():
    first = epoch_of(100, 10, 1, epoch=0, seed=1)
    assert first == epoch_of(100, 10, 1, epoch=0, seed=1)
    for other in (epoch_of(100, 10, 1, epoch=1, seed=1), epoch_of(100, 10, 1, epoch=0, seed=2)):
        assert other != first
        seeds, other_seeds = ({key for batch in run[0] for key in batch} for run in (first, other))
        assert not seeds & other_seeds


def test_repeated_augmentation_gives_copies_of_an_image_to_different_processes_under_different_seeds():
    per_rank = epoch_of(1000, 16, 3, repetitions=3)
    keys = [key for batches in per_rank for batch in batches for key in batch]
    assert len(keys) == 768  # 1000 rounded down to a multiple of 256, as torchvision does
    assert len({index for index, _ in keys}) == 256
    assert len({seed for _, seed in keys}) == 768
    for batches in per_rank:
        indices = [index for batch in batches for index, _ in batch]
        assert len(set(indices)) == len(indices)


@given(**sizes)
def test_evaluation_sees_every_sample_exactly_once_without_padding(num_samples, batch_size, world_size):
    samplers = [
        EvalBatchSampler(num_samples, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    batches = [list(sampler.epoch()) for sampler in samplers]
    assert sorted(index for rank in batches for batch in rank for index, _ in batch) == list(range(num_samples))
    assert [len(sampler) for sampler in samplers] == [len(rank) for rank in batches]


def test_fewer_samples_than_processes_are_refused():
    with pytest.raises(UserError, match="3 training samples cannot be shared by 4 processes"):
        TrainBatchSampler(3, 2, seed=0, world_size=4)
