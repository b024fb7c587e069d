"""The command `inat-ft tune`: from a folder of images to a chosen model, in a given time."""
