"""The data source `image-folder`."""
