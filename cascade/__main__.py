"""`python -m cascade`, for `torchrun -m cascade`."""

from cascade.cli import main

main()
