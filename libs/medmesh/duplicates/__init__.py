"""Whether two things are the same: the same file, object, pixels, or nearly the same picture; and what follows for a split.

Exact copies may be kept once. Nothing is ever dropped because it is near: near ones come together on one side of a split.
"""
