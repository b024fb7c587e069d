"""`inat-ft runs`: list, filter, show and delete runs, and write an HTML overview."""
