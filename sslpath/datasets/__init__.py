"""Data sets: synthetic phantom slides, the IDC breast tiles, and the registry of downloads."""
