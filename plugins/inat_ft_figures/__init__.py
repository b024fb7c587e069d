"""The figures of `inat-ft eval`, and plotting for all packages of inat-ft."""
