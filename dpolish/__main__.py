"""`python -m dpolish` is `dpolish`."""

from dpolish.cli.main import main

main()
