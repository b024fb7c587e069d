"""The HTML report of `inat-ft compare --html`, and the page template that all reports share."""
