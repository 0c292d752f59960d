"""How fast the hot paths are: ours against the plain way and other programs, to equal results."""
