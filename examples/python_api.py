"""Train two strategies on a folder of class folders, and compare them on the test set.

python examples/python_api.py photos
"""

import sys

import inat_ft

split = inat_ft.split(sys.argv[1], out="splits/example.csv", force=True)
print(split)

runs = [inat_ft.train(split=split, mode=mode, backbone="resnet18", epochs=5) for mode in ("head", "partial")]
for run in runs:
    print(inat_ft.evaluate(run))

print(inat_ft.compare(*runs).summary)
