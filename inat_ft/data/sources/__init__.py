"""Data sources: image folders, CSVs, and plugins that read other layouts."""

from inat_ft.data.sources.base import ImageList, ImageRow, ReadOptions, Reason, Source

__all__ = ["ImageList", "ImageRow", "ReadOptions", "Reason", "Source"]
