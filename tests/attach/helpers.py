"""What the tests of `attach` share."""

import torch


def sgd(network, **options):
    return torch.optim.SGD(network.parameters(), lr=0.1, **options)


def loss_of(network):
    torch.manual_seed(9)
    return network(torch.randn(4, 6)).square().mean()


def backpropagate(network, factor=1.0):
    loss = loss_of(network) * factor
    loss.backward()
    return loss


def stds(network):
    return [p.grad.std(correction=0).item() for p in network.parameters()]
