"""The seam to NeMo: the only package that imports NeMo and Lightning, inside the functions that need them."""
