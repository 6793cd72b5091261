"""One call of `znorm_` and one of clipping on the gradients of ResNet-50, for a profiler to count the bytes."""

import torch
from torchvision.models import resnet50

from lightning_znorm import znorm_


def main():
    parameters = list(resnet50().cuda().parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    elements = sum(parameter.numel() for parameter in parameters)
    print(f"{len(parameters)} gradients of {4 * elements} bytes: at least twice that is read, and once is written")

    def clip_():
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)

    for call in (lambda: znorm_(parameters), clip_):
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
