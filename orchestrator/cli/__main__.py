"""`python -m orchestrator.cli`: the command line where the console script is not installed."""

from orchestrator.cli.main import main

main()
