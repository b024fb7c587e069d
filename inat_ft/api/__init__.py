"""The functions and results of the public Python API; import them from `inat_ft`."""
