"""Training of several heads in the same steps, for sweeps of runs that train only the head."""
