"""What audit records say, for machines and for people: the vocabulary of verbs, and mappers to the formats auditors' tools read."""
