"""Exporters that write a folder."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from inat_ft.errors import StorageError, UsageError, disk_error
from inat_ft.exporters import Exporter


class FolderExporter(Exporter):
    """Base class of exporters whose `export` writes files into a folder."""

    writes_folder = True

    @contextmanager
    def writing(self, file: Path) -> Iterator[Path]:
        """Yield an empty folder that replaces the folder `file` when the block succeeds.

        Raises UsageError if `file` contains anything else than files of the same names, so that no other file is lost.
        """
        folder = Path(os.path.realpath(file))
        if not folder.name:
            raise UsageError(f"{file} cannot be replaced", "name a folder inside it: --out FOLDER")
        work, old = (folder.with_name(f".{folder.name}.{uuid4().hex[:8]}{end}") for end in (".tmp", ".old"))
        if not folder.exists() and (kept := sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.old"))):
            kept[0].replace(folder)  # a process was killed between the two renamings below
        try:
            work.mkdir(parents=True)
            yield work
            found = {path.name for path in folder.iterdir()} if folder.exists() else set()
            if other := sorted(found - {path.name for path in work.iterdir()}):
                raise UsageError(
                    f"the folder {file} has files that this export does not write, such as {other[0]}",
                    "name another folder: --out FOLDER",
                )
            if folder.exists():
                folder.replace(old)
            work.replace(folder)
        except Exception as error:
            cause = disk_error(error)
            if cause is None or isinstance(error, UsageError):
                raise
            advice = "free some space, or choose another folder"
            raise StorageError(f"cannot write {file}: {cause.strerror or cause}", advice) from error
        finally:
            if old.exists() and not folder.exists():
                old.replace(folder)
            for left in (work, old):
                shutil.rmtree(left, ignore_errors=True)
