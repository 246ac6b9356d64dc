"""Says what is wrong and what to do about it: `meshd doctor` for a machine and its peers, `meshd trace` for one packet's way.

Pure: nothing happens on import.
"""
