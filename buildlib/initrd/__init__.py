"""Initrds looked into, checked, taken apart and changed: `python -m buildlib.initrd FILE`.

`scan` reads one, `checks` says what is wrong, `unpacking` takes it apart, `edit` makes another one of it.
"""
