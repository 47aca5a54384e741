"""The families of known cases, one file each."""
