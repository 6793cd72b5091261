"""What becomes of the parameters that `min_ndim=2` leaves out, under SGD at ZNorm's learning rate?

Trains a residual network of 20 layers on the handwritten digits with SGD and momentum: plain; with ZNorm; and with
`ZNorm(min_ndim=2)`, the vectors at ZNorm's rate, frozen, and at the rate of plain SGD. Prints how far matrices and
vectors have moved (the root mean square of the change, averaged over the tensors) and the accuracy on the validation
split, as means over the seeds. About eight minutes on 2 CPU cores.
"""

import argparse

import pandas as pd
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from lightning_znorm import ZNorm, attach
from lightning_znorm.vision import Digits, ImageClassifier

TRAININGS = {  # ZNorm, the rate of the matrices, the rate of the vectors
    "without ZNorm": (ZNorm(enabled=False), 0.03, 0.03),
    "ZNorm()": (ZNorm(), 0.0003, 0.0003),
    "ZNorm(min_ndim=2)": (ZNorm(min_ndim=2), 0.0003, 0.0003),
    "ZNorm(min_ndim=2), vectors frozen": (ZNorm(min_ndim=2), 0.0003, 0.0),
    "ZNorm(min_ndim=2), vectors at SGD's rate": (ZNorm(min_ndim=2), 0.0003, 0.03),
}


def train(znorm: ZNorm, matrix_rate: float, vector_rate: float, seed: int, steps: int) -> dict[str, float]:
    """Return how far matrices and vectors have moved, and the accuracy."""
    seed_everything(seed, verbose=False)
    model, data = ImageClassifier("cifar_resnet20", in_channels=1), Digits(image_size=16)
    data.setup("fit")
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    groups = [{"params": matrices, "lr": matrix_rate}, {"params": vectors, "lr": vector_rate}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    attach(optimizer, znorm)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loader = data.train_dataloader()
    batches = iter(loader)
    for _ in range(steps):
        if (batch := next(batches, None)) is None:
            batches = iter(loader)
            batch = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        hits = torch.cat([model(images).argmax(1) == labels for images, labels in data.val_dataloader()])
    movements = {"matrices": measure_movement(before, matrices), "vectors": measure_movement(before, vectors)}
    return movements | {"accuracy": hits.float().mean().item()}


def measure_movement(before: dict[nn.Parameter, Tensor], parameters: list[nn.Parameter]) -> float:
    """Return the root mean square of the change, averaged over the tensors."""
    changes = [(parameter.detach() - before[parameter]).square().mean().sqrt() for parameter in parameters]
    return torch.stack(changes).mean().item()


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    rows = []
    for name, (znorm, matrix_rate, vector_rate) in TRAININGS.items():
        runs = [train(znorm, matrix_rate, vector_rate, seed, options.steps) for seed in range(options.seeds)]
        matrices, vectors, accuracy = pd.DataFrame(runs).mean()
        cells = (name, f"{matrix_rate:g}", f"{vector_rate:g}", f"{matrices:.1e}", f"{vectors:.1e}", f"{accuracy:.3f}")
        rows.append(cells)
    header = ["", "rate of matrices", "of vectors", "matrices move by", "vectors move by", "accuracy"]
    print(pd.DataFrame(rows, columns=header).to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    main()
