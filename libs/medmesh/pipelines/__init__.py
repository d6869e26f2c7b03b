"""Normalisation and features as versioned steps: declared in TOML, hashed, cached by content, each output's origin known.

`steps.STEPS` is what there is, `pipeline.Pipeline` a declaration of some of them, `cache.run` applies it, `loading.stream` feeds training.
"""
