"""Check."""
from inat_ft.data.images import sha256_of


def changed_files(manifest, rows, tick):
    changed = []
    for done, row in enumerate(rows):
        path = manifest.root / manifest.paths[row]
        if not path.exists() or sha256_of(path) != manifest.hashes[row]:
            changed.append(manifest.paths[row])
        tick(done + 1, len(rows))
    return changed
