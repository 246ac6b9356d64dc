"""The version of dnsd that runs: a caller that finds another one alive replaces it.

Pure.
"""

VERSION = "0.6.0"
