import subprocess
import sys

import pytest

ENTER = "import sys\nfrom inat_ft_startup.startup import defer_imports\ndefer_imports()\n"
LEARN = """
import torch, torchvision.models
layer = torch.nn.Linear(2, 1)
for make in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
    optimizer = make(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert not torch.equal(before, layer.weight), make
assert "torch._dynamo.eval_frame" not in sys.modules
"""


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", ENTER + code], capture_output=True, text=True, check=True).stdout


def test_the_compiler_is_not_loaded_for_learning_and_is_there_when_asked_for() -> None:
    python(
        LEARN
        + "double = torch.compile(lambda x: 2 * x, backend='eager')\n"
        + "assert double(torch.ones(2)).tolist() == [2, 2]\n"
        + "from torch._dynamo.utils import counters\n"
        + "assert counters['frames']['ok'] == 1, counters\n"  # it was compiled, not run as it is
        + "optimizer.step()\n"
    )


@pytest.mark.slow
def test_what_is_not_imported_at_first_is_there_when_asked_for() -> None:
    python(
        "import torch, torchvision.models\n"
        "left_out = {'torch.onnx', 'torch.export.exported_program', 'torch.distributions.normal'}\n"
        "left_out |= {'torchvision.datasets.mnist', 'torchvision.models.detection.faster_rcnn'}\n"
        "assert not left_out & set(sys.modules), left_out & set(sys.modules)\n"
        "torch.fx.symbolic_trace(torchvision.models.resnet18())\n"
        "assert 'torch.export.exported_program' not in sys.modules\n"
        "exported = torch.export.export(torch.nn.Linear(2, 1), (torch.ones(1, 2),))\n"
        "assert exported.module()(torch.ones(1, 2)).shape == (1, 1)\n"
        "from torch.export import Dim\n"
        "assert torch.distributions.Normal(0.0, 1.0).mean == 0\n"
        "assert issubclass(torchvision.datasets.ImageFolder, torch.utils.data.Dataset)\n"
        "assert torchvision.models.detection.fasterrcnn_resnet50_fpn.__name__ in torchvision.models.list_models()\n"
        "import torchvision.models.video.resnet\n"
        "import torch.onnx.symbolic_opset11\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["torch.export.exported_program", "torch._dynamo.exc", "torchvision.models.video.resnet"]
)
def test_the_first_import_of_a_submodule_runs_it_once(name: str) -> None:
    package, _, own = name.rpartition(".")
    python(
        "import importlib, torch, torchvision.models\n"
        f"module = importlib.import_module({name!r})\n"
        f"assert getattr(sys.modules[{package!r}], {own!r}) is module is sys.modules[{name!r}]\n"
        f"assert module.__spec__.origin == module.__file__ and module.__spec__.name == {name!r}\n"
    )


@pytest.mark.slow
def test_what_detection_asks_the_compiler_is_answered() -> None:
    python(
        "import torch, torchvision\n"
        "pooled = torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 2)\n"
        "assert pooled.tolist() == [[[[1, 1], [1, 1]]]]\n"
        "from torchvision.ops.roi_align import is_compile_supported\n"
        "assert is_compile_supported('cpu') in (True, False) and 'torch._dynamo.eval_frame' in sys.modules\n"
    )


@pytest.mark.slow
def test_a_compiler_that_somebody_loaded_stays() -> None:
    code = "import torch._dynamo, sys\nreal = sys.modules['torch._dynamo']\n"
    code += "from inat_ft_startup.startup import defer_imports\n"
    code += "defer_imports()\nassert sys.modules['torch._dynamo'] is real"
    subprocess.run([sys.executable, "-c", code], check=True)
