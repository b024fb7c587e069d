"""Classify photographs with an exported network: python onnx_predict.py model.onnx photo.jpg ..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
classes, how = (json.loads(session.get_modelmeta().custom_metadata_map[name]) for name in ("classes", "preprocess"))
size, method = how["eval_image_size"] or how["image_size"], Image.Resampling[how["interpolation"].upper()]
side = int(size / how["crop_pct"]) if how["crop_pct"] else round(size * 8 / 7) if how["resize"] == "crop" else size
of, whole = {"squash": (None, int), "crop": (min, int), "pad": (max, round)}[how["resize"]]
for file in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    sides = [max(1, whole(side * x / of(image.size))) if of else side for x in image.size]
    image = image.resize(sides, method)
    square = Image.new("RGB", (size, size), tuple(how["fill"]))
    square.paste(image, [(size - x) // 2 if x < size else -round((x - size) / 2) for x in image.size])
    (probabilities,) = session.run(None, {"images": np.asarray(square)[None]})[0]
    print(file, *(f"{classes[place]} {probabilities[place]:.4f}" for place in np.argsort(-probabilities)[:3]), sep="\t")
