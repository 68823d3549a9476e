"""`python -m sidecar` is the command `sidecar`."""

from sidecar.surfaces.cli import main

main(prog_name="sidecar")
