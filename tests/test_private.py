"""Every private attribute of Lightning and of PyTorch that the package reads, by name: an upgrade fails here first.

Then, what happens where one of them is missing: a public substitute, or a refusal that says so.
"""

import ast
import re
from collections import OrderedDict
from datetime import timedelta
from importlib import import_module

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_znorm import GradientMonitor, ZNorm, _lightning, _torch, attach
from lightning_znorm.engine.scaling import find_pending_scale
from lightning_znorm.engine.selection import Selection
from lightning_znorm.engine.sharding import Layouts
from lightning_znorm.errors import ZNormError
from tests import house
from tests.helpers import PACKAGES, make_module, make_trainer, recording_logger, small_network

OF_LIGHTNING = {
    "_batches_that_stepped",
    "_data_fetcher",
    "_restarting",
    "_logger_connector",
    "_version",
    "_run_name",
    "_run_id",
    "_wandb_init",
    "_id",
    "_log_hyperparams",
    "_model_averaging_period",
    "_modules",
    "_optimizer",
    "_start_method",
    "_strategy",
    "_original_module",
}
OF_TORCH = {
    "_get_scale_async",
    "_modules",
    "_orig_mod",
    "_optimizer_step_post_hooks",
    "_optimizer_step_pre_hooks",
    "_patch_step_function",
    "_per_optimizer_states",
    "_step_supports_amp_scaling",
    "_checkpoint_wrapped_module",
    "_flat_param",
    "_fsdp_flattened",
    "_fsdp_wrapped_module",
    "_foreach_copy_",
    "_foreach_mul_",
    "_foreach_norm",
    "_get_backend",
    "_getframe",
    "_inter_node_pg",
    "_param_extensions",
    "_params",
    "_shapes",
    "_shard_param_infos",
    "_sharded_size",
    "_strides",
    "_timeout",
    "_version",
}


def private_names(source):
    """Private attributes that are read, and private names in strings (`getattr`)."""
    tree = ast.parse(source)
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    named = {text.rstrip(".") for text in texts if re.fullmatch(r"_[a-z]\w+\.?", text)}
    return {name for name in read | named if name.startswith("_") and not name.startswith("__")}


def test_the_two_files_read_these_and_no_others():
    modules = house.read_modules(house.ROOT / house.PACKAGE)
    assert private_names(modules["_lightning"]) == OF_LIGHTNING
    assert private_names(modules["_torch"]) == OF_TORCH


def test_no_other_file_reads_them():
    names = (OF_LIGHTNING | OF_TORCH) - {
        "_modules",
        "_optimizer",
        "_getframe",
    }  # which are this package's own names, or Python's, too
    for module, source in house.read_modules(house.ROOT / house.PACKAGE).items():
        if module not in ("_lightning", "_torch"):
            assert not private_names(source) & names, module


@pytest.mark.parametrize("package", PACKAGES)
def test_lightning_has_them(package):
    trainer, module = make_trainer(package, max_steps=1, logger=recording_logger(package)), make_module(package)
    due = []
    module.on_train_batch_end = lambda *_: due.append(trainer._logger_connector.should_update_logs)
    trainer.fit(module)
    assert due == [False]
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 1
    assert module.optimizers(use_pl_optimizer=True)._optimizer is trainer.optimizers[0]
    assert module.optimizers()._strategy.precision_plugin is trainer.precision_plugin
    assert import_module(f"{package}.strategies").DDPStrategy()._model_averaging_period is None
    assert import_module(f"{package}.strategies").DDPStrategy(start_method="spawn")._start_method == "spawn"


@pytest.mark.parametrize("package", PACKAGES)
def test_loggers_have_them(package):
    loggers = import_module(f"{package}.loggers")
    files = [loggers.CSVLogger("logs", version="v"), loggers.TensorBoardLogger("logs", version="v")]
    assert [logger._version for logger in files] == ["v", "v"]
    assert make_module(package)._log_hyperparams is False
    pytest.importorskip("wandb")
    wandb = loggers.WandbLogger(name="n", id="i", group="g")
    assert {"name": "n", "id": "i", "group": "g"}.items() <= wandb._wandb_init.items()
    assert wandb._id == "i"


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_the_logger_of_mlflow_has_them(package):
    pytest.importorskip("mlflow")
    logger = import_module(f"{package}.loggers").MLFlowLogger(
        tracking_uri="sqlite:///m.db", run_name="n", run_id="i", tags={"a": "b"}
    )
    assert (logger._run_name, logger._run_id, logger.tags) == ("n", "i", {"a": "b"})


def test_fabric_has_them():
    network = small_network()
    model, optimizer = Fabric(accelerator="cpu", devices=1).setup(network, torch.optim.SGD(network.parameters()))
    assert model._modules["_original_module"] is network
    assert isinstance(optimizer._optimizer, torch.optim.SGD)
    assert hasattr(optimizer, "_strategy")


def test_torch_has_them():
    parameter = torch.nn.Parameter(torch.ones(2))
    plain, fused = (torch.optim.SGD([parameter], lr=0.1, fused=is_fused) for is_fused in (False, True))
    assert getattr(plain, "_step_supports_amp_scaling", False) is False
    assert fused._step_supports_amp_scaling is True
    for optimizer in (plain, fused):
        assert isinstance(optimizer._optimizer_step_pre_hooks, OrderedDict)
        assert isinstance(optimizer._optimizer_step_post_hooks, OrderedDict)
        assert type(optimizer).step.hooked
        assert callable(optimizer._patch_step_function)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(parameter.sum()).backward()
    assert scaler._get_scale_async().item() == scaler.get_scale()
    scaler.unscale_(plain)
    assert scaler._per_optimizer_states[id(plain)]["stage"] is torch.amp.grad_scaler.OptState.UNSCALED
    assert torch.compile(small_network())._modules["_orig_mod"][0].in_features == 6
    version = parameter._version
    with torch.no_grad():
        parameter.add_(1)
    assert parameter._version == version + 1
    assert callable(torch._foreach_copy_)
    assert callable(torch._foreach_mul_)
    assert torch._foreach_norm([torch.ones(4)], 2.0, torch.float64)[0].dtype == torch.float64


def test_the_calls_of_step_are_found_on_the_stack():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(_torch.count_step_calls(optimizer)))
    optimizer.step()
    assert seen == [1]
    assert _torch.count_step_calls(optimizer) == 0


@pytest.fixture
def process_group(tmp_path):
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1, timeout=timedelta(seconds=9))
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


def wrap(**options):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(small_network(), device_id=torch.device("cpu"), **options)


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:.*(use_orig_params|NO_SHARD).*")
def test_fsdp_has_them():
    assert all("_fsdp_flattened" in vars(parameter) for parameter in wrap().parameters())
    wrapped = wrap(use_orig_params=True)
    assert next(name for name, _ in wrapped.named_parameters()) == "_fsdp_wrapped_module.0.weight"
    shard = _torch.find_flat_shard(wrapped)
    assert [part[1] for part in shard.parts] == [parameter.shape for parameter in small_network().parameters()]
    assert (shard.copies, shard.device, shard.size) == (1, torch.device("cpu"), 0)
    assert _torch.find_flat_shard(small_network()) is None


def test_checkpointed_modules_have_them():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    network = nn.Sequential(checkpoint_wrapper(nn.Linear(3, 2)))
    assert next(name for name, _ in network.named_parameters()) == "0._checkpoint_wrapped_module.weight"
    assert Selection(network.named_parameters, ["0.weight"], 0, "ZNorm").name_of(network[0].weight) == "0.weight"


def test_process_groups_have_them(process_group):
    assert _torch.find_timeout(process_group, torch.device("cpu")) == timedelta(seconds=9)


# where they are missing


@pytest.mark.parametrize("package", PACKAGES)
def test_a_training_goes_on_without_what_only_the_loggers_need(package, monkeypatch):
    trainer = make_trainer(
        package,
        max_steps=4,
        log_every_n_steps=2,
        logger=recording_logger(package, ("znorm", "grad")),
        callbacks=[ZNorm(log_stats="summary"), GradientMonitor()],
    )
    monkeypatch.setattr(_lightning, "_LOGGER_CONNECTOR", "renamed")
    monkeypatch.setattr(_lightning, "_BATCH_COUNT", "renamed")
    trainer.fit(make_module(package))
    assert [step for step, _ in trainer.logger.rows] == [1, 1, 3, 3]


def test_a_logger_without_them_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(_lightning, "_LOGGER_ATTRIBUTES", {"version": "renamed"})
    monkeypatch.setattr(_lightning, "_LOGS_HYPERPARAMETERS", "renamed")
    logger = recording_logger(PACKAGES[0])
    before = dict(vars(logger))
    assert _lightning.get_logger_arguments(logger) == {}
    _lightning.set_logger_arguments(logger, {"version": "v", "name": "n"})
    assert vars(logger) == before
    assert _lightning.find_logged_hyperparameters([make_module()]) == {}


def test_the_scale_is_read_by_its_public_name():
    class Scaler:
        def get_scale(self):
            return 8.0

    assert _torch.scale_of(Scaler()).item() == 8.0


def test_a_scaler_that_does_not_say_what_it_did_is_refused(monkeypatch):
    monkeypatch.delattr(torch.amp.grad_scaler, "OptState")
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.SGD([parameter], lr=0.1), torch.amp.GradScaler("cpu")
    with pytest.raises(ZNormError, match="`GradScaler` does not say whether it has unscaled the gradients"):
        find_pending_scale(scaler, optimizer)


@pytest.mark.parametrize("host", ["attach", "trainer"])
def test_a_fused_optimizer_that_does_not_say_whether_it_unscales_is_refused(host):
    def make(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1, fused=True)
        del optimizer._step_supports_amp_scaling
        return optimizer

    message = "`ZNorm` does not support the fused optimizer `SGD`: it does not say .* Use `fused=False`"
    if host == "attach":
        with pytest.raises(ZNormError, match=message):
            attach(make(small_network().parameters()), ZNorm())
    else:
        with pytest.raises(ZNormError, match=message):
            make_trainer(max_steps=1, callbacks=[ZNorm()]).fit(make_module(optimizer=make))


def test_an_unprepared_optimizer_is_refused_where_it_cannot_be_prepared(monkeypatch):
    class Unprepared(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    optimizer = Unprepared(small_network().parameters(), lr=0.1)
    monkeypatch.delattr(Unprepared.step, "hooked")
    monkeypatch.setattr(torch.optim.Optimizer, "_patch_step_function", None)
    with pytest.raises(TypeError, match="Nothing can be attached to the optimizer `Unprepared`"):
        attach(optimizer, ZNorm())


def test_wrappers_that_hide_the_optimizer_are_refused():
    wrapper = type("LightningOptimizer", (), {"__module__": "lightning.pytorch.core.optimizer"})
    with pytest.raises(ZNormError, match="inside `LightningOptimizer` of this version of Lightning cannot be found"):
        attach(wrapper(), ZNorm())


def test_tensors_are_treated_one_by_one(monkeypatch):
    for name in ("_foreach_copy_", "_foreach_mul_", "_foreach_norm"):
        monkeypatch.delattr(torch, name)
    target = torch.zeros(3)
    _torch.copy_all_([target], [torch.arange(3.0)])
    assert target.tolist() == [0, 1, 2]
    _torch.multiply_all_([target], torch.tensor(2.0))
    assert target.tolist() == [0, 2, 4]
    (norm,) = _torch.norm_all([target], 1.0, torch.float64)
    assert (norm.item(), norm.dtype) == (6, torch.float64)


def test_a_version_that_is_not_known_is_none():
    assert _torch.version_of(object()) is None


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:.*NO_SHARD.*")
def test_fsdp_without_them_is_refused(monkeypatch):
    monkeypatch.setattr(_torch, "_FLAT_TABLES", ("_params", "renamed"))
    wrapped = wrap(use_orig_params=True)
    with pytest.raises(
        ZNormError, match=r"which part of the parameter `0\.weight` this rank holds.*exclude=\['0\.weight'\]"
    ):
        Layouts("ZNorm", wrapped.modules).find(next(wrapped.parameters()), "0.weight")


def test_process_groups_without_them_have_an_unknown_timeout():
    assert _torch.find_timeout(object(), torch.device("cpu")) is None
