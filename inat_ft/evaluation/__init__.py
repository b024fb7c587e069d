"""What a trained classifier is worth, and how sure that is."""
