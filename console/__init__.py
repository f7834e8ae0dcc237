"""The ``headrace`` command and the local stack it supervises; it may import every process."""
