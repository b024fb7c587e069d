"""The search for near duplicates of `inat-ft split`."""
