"""``python -m zoopt_nas_cli``, for programs that start modules, as torchrun does."""

from .main import main

main()
