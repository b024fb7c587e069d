"""The line from Python: split, train two strategies, compare them on the test set.

    python examples/python_api.py FOLDER_OF_CLASS_FOLDERS [key=value ...]

Settings are those of `inat-ft train --set`, such as epochs=3 backbone=resnet18 weights=none image_size=64.
"""

import sys
from pathlib import Path

from inat_ft.data.manifest import write_manifest
from inat_ft.data.sources.find import find_images
from inat_ft.data.split import Options, make_manifest
from inat_ft.evaluation.compare import compare
from inat_ft.evaluation.evaluate import evaluate_run
from inat_ft.images.scan import scan
from inat_ft.settings import load_config, parse_override
from inat_ft.training import Directories, TrainCallbacks, train


def main(data: Path, settings: list[str]) -> None:
    files = find_images(data)
    scanned = scan(files.root, files.paths, 10**8, workers=2, near=True, progress=lambda done, total: None)
    options = Options(test_fraction=0.0 if "test" in files.subsets else 0.2)
    manifest, findings = make_manifest(files, scanned, options, Path("splits/example.csv"), [""] * len(files.paths))
    write_manifest(manifest, force=True)
    print(f"{len(manifest.paths)} images, {len(findings.exact_groups)} groups of equal files")

    directories = Directories(runs=Path("runs"), cache=Path("cache"))
    callbacks = TrainCallbacks(
        on_epoch=lambda epoch: print(f"  epoch {epoch.epoch}: {epoch.val_accuracy:.3f} on validation")
    )
    runs = []
    for mode in ("head", "partial"):
        print(mode)
        overrides = [("data.split", str(manifest.path)), ("strategy.name", mode), *map(parse_override, settings)]
        _, directory = train(load_config(None, overrides), directories, callbacks)
        evaluate_run(directory, "test")
        runs.append(directory)
    print(compare(runs).summary)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
