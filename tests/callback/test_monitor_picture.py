"""What a GradientMonitor hands on: the frame and the picture, also of trainings that do not come to their end."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_znorm import GradientMonitor, ZNorm
from tests.helpers import FIRST_PACKAGE, PACKAGES, make_module, make_trainer

PNG = b"\x89PNG\r\n\x1a\n"


def monitored(*callbacks, network=None, steps=3, **arguments):
    monitor = GradientMonitor(every_n_steps=1, **arguments)
    trainer = make_trainer(max_steps=steps, callbacks=[*callbacks, monitor], default_root_dir="runs")
    trainer.fit(make_module(network=network))
    return monitor


def panels(figure):
    return [axis for axis in figure.axes if axis.get_title()]


def meshes(figure):
    return [axis.collections[0] for axis in panels(figure)]


def test_a_frame_has_the_rows_of_the_history():
    monitor = monitored()
    frame = monitor.to_frame()
    assert len(frame) == 12
    assert frame.to_dict("records") == monitor.history
    assert list(frame.columns) == [
        *("step", "optimizer", "name", "ndim", "norm", "mean", "std", "near_zero"),
        *("received_norm", "received_mean", "received_std", "received_near_zero", "cosine"),
    ]


def test_two_panels_share_one_scale_and_show_the_weights_in_the_order_of_the_module():
    monitor = monitored(ZNorm())
    figure = monitor.plot("new/folder/gradients.png")
    assert Path("new/folder/gradients.png").read_bytes()[:8] == PNG
    assert [axis.get_title() for axis in panels(figure)] == [
        "raw, after the backward pass",
        "received by the optimizer",
    ]
    raw, received = meshes(figure)
    assert raw.norm is received.norm
    assert [label.get_text() for label in panels(figure)[0].get_yticklabels()] == [
        "network.0",
        "network.2",
    ]
    stds = torch.tensor([row["std"] for row in monitor.history if row["ndim"] == 2]).view(3, 2).T
    assert torch.equal(torch.from_numpy(raw.get_array().data).float().view(2, 3), stds)
    assert received.get_array().data == pytest.approx(1, abs=1e-6)
    assert monitor.plot(min_ndim=1).axes[0].get_ylim() == (3.5, -0.5)


def test_one_panel_where_nothing_transforms():
    assert len(panels(monitored().plot())) == 1


def test_zeros_and_nan_are_not_drawn():
    class Unheard(nn.Linear):
        def forward(self, inputs):
            return inputs + 0 * super().forward(inputs)

    figure = monitored(network=nn.Sequential(Unheard(6, 6), nn.Linear(6, 3))).plot()
    values = meshes(figure)[0].get_array()
    assert values.mask.tolist() == [[True] * 3, [False] * 3]
    assert "grey" in figure.axes[-1].get_xlabel()


def test_a_huge_range_is_cut_and_many_layers_get_fewer_labels():
    layers = [layer for _ in range(70) for layer in (nn.Linear(6, 6), nn.Sigmoid())]
    figure = monitored(network=nn.Sequential(*layers, nn.Linear(6, 3))).plot()
    norm = meshes(figure)[0].norm
    assert norm.vmin >= norm.vmax * 1e-16 * 0.99
    labels = [label.get_text() for label in panels(figure)[0].get_yticklabels()]
    assert 20 < len(labels) <= 40
    assert figure.get_size_inches()[1] <= 9


def test_a_figure_of_one_step_and_of_no_pyplot():
    sys.modules.pop("matplotlib.pyplot", None)
    figure = monitored(steps=1).plot()
    assert isinstance(figure, Figure)
    assert "matplotlib.pyplot" not in sys.modules


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="recorded no gradient of a parameter with 2 or more dimensions"):
        GradientMonitor().plot()
    with pytest.raises(ValueError, match="with 5 or more dimensions"):
        monitored().plot(min_ndim=5)


@pytest.mark.parametrize("absolute", [False, True])
def test_the_picture_is_written_at_the_end(tmp_path, absolute):
    target = tmp_path / "elsewhere" / "gradients.svg" if absolute else Path("pictures/gradients.svg")
    monitored(ZNorm(), picture=target)
    assert b"<svg" in (target if absolute else Path("runs") / target).read_bytes()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_picture_of_a_training_that_is_interrupted_or_fails(package, error):
    class Interrupt(import_module(package).Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                raise error

    monitor = GradientMonitor(every_n_steps=1, picture="gradients.png")
    trainer = make_trainer(package, max_steps=5, callbacks=[monitor, Interrupt()])
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        trainer.fit(make_module(package))
    assert {row["step"] for row in monitor.history} == {0, 1}
    assert Path("gradients.png").read_bytes()[:8] == PNG
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert monitor._watch is None


@pytest.mark.parametrize("package", FIRST_PACKAGE)
@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        ("file/gradients.png", "File exists: 'runs/file'"),
        ("new/folder/" + "x" * 300 + "gradients.png", "File name too long"),
        ("gradients.png", "Is a directory"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_training(package, picture, reason):
    Path("runs/gradients.png").mkdir(parents=True)
    Path("runs/file").touch()
    module = make_module(package)

    def training_step(batch, batch_idx):
        raise AssertionError("a step was taken before the refusal")

    module.training_step = training_step
    trainer = make_trainer(package, callbacks=[GradientMonitor(picture=picture)], default_root_dir="runs")
    message = (
        rf"^Argument `picture`: .*gradients\.png' cannot be written \(.*{reason}.*\)\. Name a file in a folder that"
    )
    with pytest.raises(ValueError, match=message):
        trainer.fit(module)
    assert sorted(path.name for path in Path().rglob("*")) == ["file", "gradients.png", "runs"]


@pytest.mark.parametrize("exists", [False, True])
def test_looking_whether_a_picture_can_be_written_leaves_no_trace(exists):
    target = Path("runs/new/folder/gradients.png")
    if exists:
        target.parent.mkdir(parents=True)
        target.write_bytes(b"of an earlier training")

    class Look(import_module("lightning.pytorch").Callback):
        def on_train_start(self, *args):
            assert [path.read_bytes() for path in Path().rglob("*.png")] == [b"of an earlier training"] * exists
            assert Path("runs/new").exists() == exists

    monitored(Look(), picture="new/folder/gradients.png")
    assert target.read_bytes()[:8] == PNG


def test_only_rank_zero_looks_whether_the_picture_can_be_written(monkeypatch):
    Path("file").touch()
    trainer = make_trainer(max_steps=1, callbacks=[GradientMonitor(picture="file/gradients.png")])
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    trainer.fit(make_module())


class TakeThePlace(import_module("lightning.pytorch").Callback):
    """Makes the picture unwritable once the training is on its way."""

    def __init__(self, error=None):
        self.error = error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            Path("runs/gradients.png").mkdir(parents=True)
            if self.error is not None:
                raise self.error


def test_a_picture_that_can_no_longer_be_written_ends_in_a_warning():
    with pytest.warns(UserWarning, match=r"`GradientMonitor` could not write `picture='gradients\.png'`: .*directory"):
        monitor = monitored(TakeThePlace(), picture="gradients.png")
    assert {row["step"] for row in monitor.history} == {0, 1, 2}


def test_a_picture_that_can_no_longer_be_written_does_not_hide_the_error():
    with (
        pytest.warns(UserWarning, match=r"could not write `picture='gradients\.png'`"),
        pytest.raises(ZeroDivisionError),
    ):
        monitored(TakeThePlace(ZeroDivisionError()), picture="gradients.png")


def test_a_picture_with_nothing_to_draw_ends_in_a_warning():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            return inputs[:, :3] * self.scale

    with pytest.warns(UserWarning, match="could not write .* no gradient of a parameter with 2 or more dimensions"):
        monitored(network=Scale(), picture="gradients.png")


def test_a_picture_in_an_unknown_format_is_refused_before_the_training():
    monitor = GradientMonitor(picture="gradients.xls")
    with pytest.raises(ValueError, match=r"`picture` to end in one of .*png.*, but got 'gradients\.xls'"):
        make_trainer(max_steps=1, callbacks=[monitor]).fit(make_module())


@pytest.mark.parametrize("missing", ["pandas", "matplotlib"])
def test_without_the_extra(monkeypatch, missing):
    monitor = monitored()
    monkeypatch.setattr("lightning_znorm.errors.find_spec", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match=rf'{missing}.*pip install "lightning-znorm\[compare\]"'):
        monitor.to_frame() if missing == "pandas" else monitor.plot()
    if missing == "matplotlib":
        with pytest.raises(ModuleNotFoundError, match="matplotlib"):
            monitored(picture="gradients.png")


def test_from_the_command_line():
    from lightning_znorm.cli import ZNormCLI

    cli = ZNormCLI(
        import_module("lightning.pytorch.demos.boring_classes").BoringModel,
        args=[
            *("fit", "--znorm", "--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"),
            *("--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"),
            "--trainer.callbacks+=lightning_znorm.GradientMonitor",
            *("--trainer.callbacks.every_n_steps=1", "--trainer.callbacks.picture=gradients.png"),
        ],
        save_config_callback=None,
    )
    assert isinstance(cli.trainer.callbacks[0], GradientMonitor)
    assert {row["step"] for row in cli.trainer.callbacks[0].history} == {0, 1}
    assert Path("gradients.png").read_bytes()[:8] == PNG
