"""Cross-validation: `inat-ft train --folds`, and the comparison of cross-validations."""
