"""One small member of each of torchvision's families: what is declared learns, all else stays, cached or not."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model

from inat_ft.cache.frozen_prefix import PrefixCache
from inat_ft.cache.loaders import EpochLoaders
from inat_ft.cache.packed_images import Pixels
from inat_ft.config import build_strategy
from inat_ft.engine.device import Compute
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState, fit, run_tasks
from inat_ft.engine.forward import StepConfig
from inat_ft.engine.plan import TrainingPlan, make_plan
from inat_ft.images.decode import sha256_of
from inat_ft.models.base import Preprocess
from inat_ft.models.build import build_net
from inat_ft.models.net import Net
from inat_ft.settings import load_config
from tests.models.families import NAMES, examine, line, no_memory

pytestmark = pytest.mark.slow

CPU = Compute(torch.device("cpu"), "fp32", forced=True)
SIZES = {"alexnet": 64, "inception_v3": 80, "maxvit_t": 224}
QUICK = (
    *("densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"),
)
SLOW = ("alexnet", "convnext_tiny", "inception_v3", "maxvit_t", "swin_t", "swin_v2_t", "vit_b_32")
OTHERWISE = ("squeezenet1_1", "mnasnet0_5")
"""A SqueezeNet has another head there; MNASNet takes only the dictionaries that torch.load gives."""


def fresh(name: str) -> Net:
    overrides = [("model.backbone", name), ("model.weights", "none")]
    net = build_net(load_config(None, overrides).model, 3, SIZES.get(name, 32), seed=0)
    return net.to(memory_format=torch.channels_last)


def run(net: Net, plan: TrainingPlan, images: Path, cache: Path, mode: str) -> dict[str, Tensor]:
    """The network's weights after an epoch: two steps, or one where they take long."""
    preprocess = Preprocess(image_size=SIZES.get(net.name, 32))
    files = sorted(images.rglob("*.png"))[:: 30 if net.name in SLOW else 10]
    with ThreadPoolExecutor(1) as pool:
        hashes = [sha256_of(file) for file in files]
        pixels = Pixels(files, hashes, torch.arange(len(files)) % 3, preprocess.image_size, cache, pool)
        settings = {"epochs": 1, "lr": 1e-2, "optimizer": "sgd", "momentum": 0, "batch_size": 3}
        overrides = [(f"optim.{key}", value) for key, value in settings.items()]
        config = load_config(None, [*overrides, ("compute.cache", mode)])
        loaders = EpochLoaders(plan, pixels, pixels, PrefixCache(net, preprocess, CPU, cache), config)
        run_tasks(fit(loaders, plan, StepConfig(config.optim), CPU, TrainState(EarlyStopping(0))))
    return {name: tensor.clone() for name, tensor in net.original_state_dict().items()}


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_what_is_declared_changes_and_nothing_else_cached_or_not(name: str, images: Path, tmp_path: Path) -> None:
    net = fresh(name)
    start = {key: tensor.clone() for key, tensor in net.original_state_dict().items()}
    for mode in ("head", "partial", "full") if name in QUICK else ("partial",):
        net.load_original_state_dict(start, "start")
        plan = make_plan(build_strategy(load_config(None, [("strategy.name", mode)]).strategy), net, 1)
        after = run(net, plan, images, tmp_path, "none")
        changed = {key for key in after if not torch.equal(after[key], start[key])}
        learned = {net.original_name(key) for key, each in net.named_parameters() if id(each) in plan.trainable_ids}
        assert changed <= {net.original_name(key) for key in plan.trainable_state_names()}, (
            "frozen weights or statistics changed"
        )
        # Not those on a path that was dropped at random, or that are fed with zeros.
        assert len(learned & changed) >= 0.5 * len(learned)
        if name == "maxvit_t":  # takes no small images, and looking for what is exact takes many
            continue
        net.load_original_state_dict(start, "start")
        cached = run(net, plan, images, tmp_path, "prefix")
        assert all(torch.equal(cached[key], after[key]) for key in after)
    if name not in OTHERWISE:
        check_torchvisions(name, net, after)


def check_torchvisions(name: str, net: Net, state: dict[str, Tensor]) -> None:
    """torchvision's own model takes the weights and computes the same, as does the chain wherever it is cut."""
    own = torchvisions(name)
    own.load_state_dict(state, assign=True)
    net.eval()
    x = torch.rand(2, 3, SIZES.get(name, 32), SIZES.get(name, 32)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        middle = x
        for number in range(len(net.stages)):
            middle = net.forward_stages(middle, number, number + 1)
        assert torch.equal(own.eval()(x), net(x)) and torch.equal(net.head(middle), net(x))


def torchvisions(name: str) -> torch.nn.Module:
    """torchvision's own model of three classes, with weights to come."""
    options: dict[str, object] = {"num_classes": 3}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    if name.startswith("vit"):
        options |= {"image_size": 32}
    with no_memory():
        return get_model(name, **options)


def test_every_name_is_documented_and_the_page_is_what_the_networks_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    documented = re.findall(r"(?m)^\| (\w+) \|", page)[1:]
    assert documented == list(NAMES)
    assert line(examine("resnet50")) in page and line(examine("vit_b_16")) in page
