"""Free text of medical records: finding what names people and places in it, and a person's review of what was found."""

from medmesh.text.find import doubts, find, redact
from medmesh.text.review import Review, propose
from medmesh.text.sifting import Sieve, Sifted, as_text, sift
from medmesh.text.spans import Kind, Span
from medmesh.text.vocabulary import terms_of

__all__ = ["Kind", "Review", "Sieve", "Sifted", "Span", "as_text", "doubts", "find", "propose", "redact", "sift", "terms_of"]
