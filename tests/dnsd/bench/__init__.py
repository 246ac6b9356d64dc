"""How fast dnsd is, beside other DNS servers and the bare system calls, in one run: `make bench-dns`. Only ratios within a run count."""
