"""The networks: an image encoder, one text transformer in three roles, and what is built of them.

Shapes: B images or pairs, P pairs that pick their image by index, N image tokens (1 + patches), L
    text tokens,
D image width, W text width, E shared embedding, H heads, Q queue, V vocabulary.
"""
