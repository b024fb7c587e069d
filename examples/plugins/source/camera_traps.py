"""Images listed in a JSON file in the COCO Camera Traps format, such as those of LILA BC."""

import json

from inat_ft.data.sources import ImageList, Source


class CameraTraps(Source):
    """A JSON file in the COCO Camera Traps format."""

    def recognizes(self, location):
        return location.suffix == ".json"

    def read(self, location, options):
        content = json.loads(location.read_text(encoding="utf-8"))
        labels = {category["id"]: category["name"] for category in content["categories"]}
        files = {image["id"]: image for image in content["images"]}
        images = ImageList(location.parent, "COCO Camera Traps", listing=location.name)
        for annotation in content["annotations"]:
            image = files[annotation["image_id"]]
            images.add(image["file_name"], labels[annotation["category_id"]], group=image.get("seq_id", ""))
        return images
