"""As `python -m pruning_adapter`."""

from pruning_adapter.cli import main

main()
