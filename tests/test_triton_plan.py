"""The order of the work of the Triton backend, and what leads there."""

import pytest
import torch

from lightning_znorm.backends import reference, triton

CPU = torch.device("cpu")


@pytest.mark.parametrize("sizes", [(1,), (1, 1), (5,), (4096, 4097), (1, 90_000, 3, 1, 50_000, 50_000, 7, 200_000, 1)])
@pytest.mark.parametrize("group", [1, 100_000, 1 << 30])
def test_every_tile_is_measured_once_and_normalized_once_after_that(sizes, group, monkeypatch):
    monkeypatch.setattr(triton, "_GROUP", group)
    triton.make_plan.cache_clear()
    plan = triton.make_plan(sizes, 4, CPU)
    triton.make_plan.cache_clear()
    tiles = [-(-size // triton._TILE) for size in sizes]
    assert plan.first_tiles.diff().tolist() == tiles
    assert plan.owners.tolist() == [owner for owner, count in enumerate(tiles) for _ in range(count)]
    items = plan.items.tolist()
    assert sorted(item for item in items if item >= 0) == list(range(sum(tiles)))
    normalized = sorted(~item for item in items if item < 0)
    assert normalized == [tile for tile in range(sum(tiles)) if sizes[plan.owners[tile]] > 1]
    place = {item: number for number, item in enumerate(items)}
    for tile in normalized:
        owner = plan.owners[tile]
        siblings = [other for other in range(sum(tiles)) if plan.owners[other] == owner]
        assert all(place[sibling] < place[~tile] for sibling in siblings)


def test_groups_alternate():
    triton.make_plan.cache_clear()
    size = triton._GROUP // 4
    plan = triton.make_plan((size, size, size), 4, CPU)
    kinds = "".join("m" if item >= 0 else "n" for item in plan.items.tolist())
    tiles = size // triton._TILE
    assert kinds == "m" * 2 * tiles + "n" * tiles + "m" * tiles + "n" * 2 * tiles


@pytest.mark.parametrize("programs", [1, 2, 7])
def test_any_number_of_programs_does_it(programs, monkeypatch):
    monkeypatch.setattr(triton, "count_programs", lambda device, items: programs)
    gradients = [torch.randn(size) for size in (3, 20_000, 1, 9_000)]
    expected = [gradient.clone() for gradient in gradients]
    reference.znorm_(expected, 1e-10)
    triton.znorm_(gradients, 1e-10)
    torch.testing.assert_close(gradients, expected)
