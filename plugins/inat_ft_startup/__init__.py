"""What comes before a command or a function: imports are deferred, freed memory is kept, arguments are checked."""
