"""Downloads that resume, safe extraction, and the named data sets."""
