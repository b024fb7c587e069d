"""What computing frozen layers in bfloat16 changes, on real weights and real pictures.

    python -m tests.benchmarks.bfloat16

EfficientNet-Lite0 with its ImageNet weights: the features of 64 crops of scikit-learn's two photographs at 224 x 224 and
the classes that its own ImageNet head gives them; then the head trained on the digits from features of either kind.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from inat_ft.cache.prefix_forward import folded_prefix, reduced_prefix
from inat_ft.config import ModelConfig, build_backbone
from inat_ft.data.batches import ImageInput
from inat_ft.models.build import build_model
from tests.benchmarks.near_duplicates import crops

CROPS = 64


def photographs() -> None:
    config = ModelConfig(backbone="efficientnet_lite0", weights="imagenet")
    model = build_model(config, 10, 0)
    net = model.net.eval()
    rng = np.random.default_rng(0)
    pixels = np.stack(
        [np.asarray(crop.resize((224, 224), Image.Resampling.BILINEAR)) for crop in crops(rng, CROPS, 200)]
    )
    images = ImageInput(model.preprocess.mean, model.preprocess.std)(torch.from_numpy(pixels), torch.empty(0))
    whole = len(net.stages)
    with torch.inference_mode():
        exact = folded_prefix(net, whole).build()(images).float()
        fast = reduced_prefix(net, whole, torch.bfloat16).build()(images.to(torch.bfloat16)).float()
        with torch.autocast("cpu", torch.bfloat16):
            cast = net.forward_stages(images, 0, whole).float()
        weights = build_backbone(config).weights("imagenet").load()
        classes = [
            F.linear(x, weights["classifier.weight"], weights["classifier.bias"]).argmax(1) for x in (exact, fast)
        ]
    for name, other in (("folded bfloat16", fast), ("autocast", cast)):
        print(f"{name}: features differ by {(other - exact).norm() / exact.norm():.2%} (relative L2)")
    print(f"cosine of the features: {F.cosine_similarity(fast, exact).mean():.4f}")
    print(f"same most probable of 1,000 classes: {(classes[0] == classes[1]).float().mean():.1%} of {CROPS} crops")


def digits() -> None:
    with tempfile.TemporaryDirectory() as temporary:

        def run(*words: str) -> str:
            command = [sys.executable, "-m", "inat_ft", *words]
            return subprocess.run(command, cwd=temporary, check=True, capture_output=True, text=True).stdout

        run("fetch", "digits", "--to", "data")
        run("split", "data/digits")
        common = ("--mode", "head", "--backbone", "efficientnet_lite0", "--epochs", "10", "--lr", "1e-3", "--json")
        for precision in ("fp32", "bf16", "auto"):
            said = json.loads(run("train", *common, "--cache-dir", f"cache-{precision}", "--precision", precision))
            found = json.loads(run("eval", str(Path(said["directory"])), "--json"))["metrics"]["accuracy"]
            lines = [line for line in said["compute"]["decisions"] if "differs" in line]
            print(f"digits, head, {precision}: test accuracy {found['value']:.4f}; {' '.join(lines)}")


if __name__ == "__main__":
    photographs()
    digits()
