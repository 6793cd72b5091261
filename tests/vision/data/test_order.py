import itertools
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from lightning_znorm.vision.data._on_device import DeviceLoader
from lightning_znorm.vision.data._order import Order, find_rank, share_seed
from lightning_znorm.vision.data._splits import Split, Tensors


def deal(count, batch_size, world_size, epoch=0, **arguments):
    """Return the batches of each rank."""
    parts = []
    for rank in range(world_size):
        order = Order(range(count), batch_size, rank, world_size, **arguments)
        order.set_epoch(epoch)
        parts.append(list(order))
        assert len(order) == len(parts[-1])
        assert order.sizes() == [len(batch) for batch in parts[-1]]
    return parts


def samples(parts):
    return list(itertools.chain(*itertools.chain(*parts)))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("count", "world_size"), [(10, 3), (2, 7), (5, 1), (8, 4)])
def test_padded_parts_are_of_one_length(count, world_size, shuffle):
    for epoch in range(2):
        parts = deal(count, 2, world_size, epoch, seed=5, shuffle=shuffle, pads=True)
        assert {len(samples([part])) for part in parts} == {-(-count // world_size)}
        assert set(samples(parts)) == set(range(count))
        assert all(len(batch) == 2 for part in parts for batch in part[:-1])


def test_evaluation_has_each_sample_once_and_as_many_batches_on_each_rank():
    """A batch has more samples than was asked for only where that is 1."""
    for count, batch_size, world_size in itertools.product(range(1, 30), range(1, 8), range(1, 6)):
        if count < world_size:
            continue
        parts = deal(count, batch_size, world_size)
        assert sorted(samples(parts)) == list(range(count))
        assert len({len(part) for part in parts}) == 1
        largest = max(len(batch) for part in parts for batch in part)
        assert largest <= max(batch_size, 2 if count % world_size else 1)
        assert min(len(batch) for part in parts for batch in part) > 0
    assert deal(9, 4, 1) == [[[0, 1, 2, 3], [4, 5, 6, 7], [8]]]


def test_fewer_samples_than_ranks():
    with pytest.raises(ValueError, match=r"A split of 2 sample\(s\) cannot be shared by 3 rank\(s\)"):
        Order(range(2), 8, rank=0, world_size=3)


def test_random_numbers_come_with_the_samples():
    orders = [Order(range(7), 2, rank, 2, seed=5, shuffle=True, pads=True, draws=3) for rank in (0, 1)]
    drawn = [order.draw() for order in orders]
    for order, draws in zip(orders, drawn, strict=True):
        indices = order.share()
        assert draws.shape == (4, 3)
        batches = list(order)
        assert torch.equal(torch.tensor([number for chosen, _ in batches for number in chosen]), indices)
        assert torch.equal(torch.tensor([row for _, rows in batches for row in rows]), draws)
        assert not torch.equal(order.draw(), draws)  # those of the next epoch
    assert not (drawn[0] == drawn[1]).any()


def test_seeds_do_not_share_epochs():
    """As they would if seed and epoch were added."""
    orders = (Order(range(20), 20, seed=seed, shuffle=True) for seed in range(4))
    assert len({tuple(batch) for order in orders for _ in range(4) for batch in order}) == 16


@pytest.mark.parametrize("draws", [0, 3])
def test_ranks_of_a_device_loader(draws):
    split = Split(
        Tensors(torch.zeros(10, 3, 2, 2, dtype=torch.uint8), torch.arange(10)), torch.zeros(1, 3), torch.ones(1, 3)
    )
    for rank in range(4):
        order, same = (Order(range(10), 2, rank, 4, seed=5, shuffle=True, pads=True, draws=draws) for _ in range(2))
        loader = DeviceLoader(split, order)
        expected = [batch[0] if draws else batch for batch in same]
        assert [targets.tolist() for _, targets in loader] == expected
        assert len(loader) == 2


def test_parts_without_a_trainer_are_those_of_the_process_group():
    """As in Fabric, which leaves a sampler alone that shares out by itself."""
    answers = {"is_initialized": True, "get_rank": 2, "get_world_size": 3}
    with (
        mock.patch.multiple(dist, **{name: mock.Mock(return_value=value) for name, value in answers.items()}),
        mock.patch.object(dist, "broadcast_object_list", lambda seeds: seeds.__setitem__(0, 17)),
    ):
        assert find_rank(None) == (2, 3)
        assert share_seed(None, 5) == 17
    assert share_seed(None, 5) == 5


def test_parts_are_those_of_the_strategy():
    """Not of the processes: with tensor parallelism several of them take the same part."""
    assert find_rank(None) == (0, 1)
    assert find_rank(SimpleNamespace(distributed_sampler_kwargs=None)) == (0, 1)
    kwargs = {"num_replicas": 4, "rank": 3}
    assert find_rank(SimpleNamespace(distributed_sampler_kwargs=kwargs, world_size=8, global_rank=6)) == (3, 4)
