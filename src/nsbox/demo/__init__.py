"""
``python -m nsbox.demo``: see for yourself that a container is a special process.

Starts real sandboxes on this machine, looks at them from inside and from
outside, and explains what it sees.
"""
