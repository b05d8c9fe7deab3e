"""``python -m fedkd.cli``: the same as the command ``fedkd``."""

from fedkd.cli.main import main

main()
