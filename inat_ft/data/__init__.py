"""Images: found, checked, split, decoded once and handed over in batches."""
