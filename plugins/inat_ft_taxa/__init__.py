"""Classes by taxonomic rank: `inat-ft split --classes-from`."""
