"""Data as the world ships it, read where it lies: what is it, what is in it, and one item after the other.

`sources.opened` makes a folder, zip, tar or tar.gz one read-only `Source`; `registry.recognised` finds the importer for it; the importer's
`plan` says what an import would do and writes nothing; its `items` stream in constant memory.
"""
