"""The command `inat-ft sweep soup`: average the weights of several runs."""
