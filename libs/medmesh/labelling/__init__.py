"""Labelling by people: the label schema, the states of an item, and who may do what. Pure rules without I/O."""
