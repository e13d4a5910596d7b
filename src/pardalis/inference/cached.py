from pardalis.inference.token_loop import generate_ids as generate_cached  # noqa: F401
