"""The command `inat-ft sweep best`: the best trial, and training it again with other seeds."""
