"""The ``fedkd`` command."""
