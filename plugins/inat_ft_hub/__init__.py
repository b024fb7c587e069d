"""Upload to the Hugging Face Hub: `inat-ft export --push-to-hub`."""
