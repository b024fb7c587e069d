"""Classify photographs with an exported network: python onnx_predict.py model.onnx photo.jpg ..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
classes, how = (json.loads(session.get_modelmeta().custom_metadata_map[name]) for name in ("classes", "preprocess"))
size, method = [how["eval_image_size"] or how["image_size"]] * 2, Image.Resampling[how["interpolation"].upper()]
own = {"pad": {"color": tuple(how["fill"])}, "crop": {"bleed": 0.5 - (how["crop_pct"] or 0.875) / 2}}
resize = {"squash": Image.Image.resize, "pad": ImageOps.pad, "crop": ImageOps.fit}[how["resize"]]
for file in sys.argv[2:]:
    image = resize(ImageOps.exif_transpose(Image.open(file)).convert("RGB"), size, method, **own.get(how["resize"], {}))
    (probabilities,) = session.run(None, {"images": np.asarray(image)[None]})[0]
    print(file, *(f"{classes[place]} {probabilities[place]:.4f}" for place in np.argsort(-probabilities)[:3]), sep="\t")
