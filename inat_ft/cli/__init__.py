"""The command line: words in, tables out. It holds no logic and imports nothing heavy before a command runs."""
