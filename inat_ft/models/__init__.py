"""Networks: a backbone gives an ordinary classifier, of which Net makes stages and a new head."""

from inat_ft.models.base import Backbone, Pretrained

__all__ = ["Backbone", "Pretrained"]
