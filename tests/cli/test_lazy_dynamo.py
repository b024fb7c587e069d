import subprocess
import sys

ENTER = "import sys\nfrom inat_ft.cli.lazy_dynamo import defer_compiler\ndefer_compiler()\n"
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


def test_what_detection_asks_the_compiler_is_answered() -> None:
    python(
        "import torch, torchvision\n"
        "pooled = torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 2)\n"
        "assert pooled.tolist() == [[[[1, 1], [1, 1]]]]\n"
        "from torchvision.ops.roi_align import is_compile_supported\n"
        "assert is_compile_supported('cpu') in (True, False) and 'torch._dynamo.eval_frame' in sys.modules\n"
    )


def test_a_compiler_that_somebody_loaded_stays() -> None:
    code = "import torch._dynamo, sys\nreal = sys.modules['torch._dynamo']\n"
    code += "from inat_ft.cli.lazy_dynamo import defer_compiler\n"
    code += "defer_compiler()\nassert sys.modules['torch._dynamo'] is real"
    subprocess.run([sys.executable, "-c", code], check=True)
