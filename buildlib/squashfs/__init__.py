"""Squashfs files that are made anew from earlier ones: what did not change is not compressed again.

The format is that of Linux' Documentation/filesystems/squashfs.rst and of fs/squashfs/squashfs_fs.h.
"""
