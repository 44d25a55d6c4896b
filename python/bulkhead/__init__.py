"""Bulkhead for Python: `import bulkhead.ray as ray`. See docs/python.md."""

__version__ = "0.1.0"
