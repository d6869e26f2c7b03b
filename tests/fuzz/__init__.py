"""Parsers of what comes from outside, each with texts that fit: for hypothesis in the suite and for atheris in `make fuzz`."""
