"""Gradients on a GPU."""

import torch


def draw(*sizes, mean=0.1, dtype=torch.float32, device="cuda"):
    generator = torch.Generator(device).manual_seed(sum(sizes))
    return [(torch.randn(n, device=device, generator=generator) + mean).to(dtype) for n in sizes]
