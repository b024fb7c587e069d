"""`inat-ft split --pack SIZE`: the packed cache, written while the images are decoded for the split."""
