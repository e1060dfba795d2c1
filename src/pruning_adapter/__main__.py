"""`python -m pruning_adapter`: the command line, for launchers that start modules."""

from pruning_adapter.cli import main

main()
