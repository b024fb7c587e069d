"""`python -m inat_ft` is `inat-ft`."""

from inat_ft.cli.main import run

if __name__ == "__main__":
    run()
