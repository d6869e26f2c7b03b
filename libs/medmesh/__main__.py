"""`python -m medmesh` is the `medmesh` command."""

from medmesh.cli import main

main()
