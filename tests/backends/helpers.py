"""What the tests of backends share: all of them, what they are given, and how far a result may be off."""

import torch

from lightning_znorm.backends import cpu, generic, reference, triton


def by_triton(gradients, eps, grad_scale=None, center=True):
    """On a GPU where there is one, in Triton's interpreter elsewhere."""
    if not torch.cuda.is_available():
        return triton.znorm_(gradients, eps, grad_scale, center)
    moved = [torch.empty_strided(g.shape, g.stride(), dtype=g.dtype, device="cuda").copy_(g) for g in gradients]
    stats = triton.znorm_(moved, eps, None if grad_scale is None else grad_scale.cuda(), center)
    for gradient, result in zip(gradients, moved, strict=True):
        gradient.copy_(result)
    return stats.cpu()


BACKENDS = {
    "reference": reference.znorm_,
    "cpu": cpu.znorm_,
    "generic": generic.znorm_,
    "float32 alone": generic.znorm_,
    "triton": by_triton,
}
# around what the backends treat differently: rows of a matrix, one tile, several, widths that do not divide
SIZES = [2, 3, 17, 1000, 4096, 4097, 8192, 8193, 36_864, 100_003, 1_000_003]
SIZES_IN_THE_INTERPRETER = [2, 3, 1000, 4096, 4097, 36_864]  # a part of a tile, one, several
MEANS = [0.0, 1.0, 10.0, 1000.0]  # in units of the standard deviation
SCALES = [1e-30, 1e-8, 1.0, 1e36]
LAYOUTS = {
    "contiguous": lambda g: g,
    "channels_last": lambda g: g.to(memory_format=torch.channels_last),
    "transposed": lambda g: g.transpose(0, 1).contiguous().transpose(0, 1),
    "in a bucket": lambda g: torch.cat([torch.ones(3), g.flatten(), torch.ones(5)])[3:-5].view(g.shape),
    "every other": lambda g: g.repeat_interleave(2, dim=3)[..., ::2],
    "one column": lambda g: torch.stack([g, g], dim=-1)[..., 0],
}


def draw(size, mean=0.0, scale=1.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + size)
    return ((torch.randn(size, generator=generator, dtype=torch.float64) + mean) * scale).to(dtype)


def is_interpreted(znorm_):
    return znorm_ is by_triton and not torch.cuda.is_available()


def sizes_for(znorm_):
    return SIZES_IN_THE_INTERPRETER if is_interpreted(znorm_) else SIZES


def bound(mean):
    return 1e-6 if mean <= 10 else 1e-4


def most_ulps(znorm_):
    """Triton's interpreter cuts off the digits of a bfloat16, which a GPU rounds."""
    return 1.01 if is_interpreted(znorm_) else 1


def ulps(result, expected):
    """The largest difference in units of the last place, of the smallest number that is no denormal at least."""
    spacing = torch.finfo(result.dtype).eps * 2.0 ** torch.floor(torch.log2(expected.abs().clamp(min=1e-3)))
    return ((result.double() - expected).abs() / spacing).max().item()
