"""Released models, verified and served."""
