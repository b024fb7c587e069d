"""The command `inat-ft doctor`: check the installation, the device and the plugins."""
