"""Images: decoding, signatures, near duplicates, scanning and augmentation."""
