"""Results by group of images, such as a sequence of a camera trap or a site."""
