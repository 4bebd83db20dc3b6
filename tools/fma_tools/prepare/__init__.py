"""Data sets from the archives that their users download, unpacked and checked."""
