"""The command `inat-ft sweep report`: an HTML page and figures of a sweep."""
