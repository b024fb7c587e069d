"""Data sets for `inat-ft fetch`: iNaturalist-12K from a public bucket, and the digits of scikit-learn."""
