"""What an ensemble says, one function in one file: ``pool(logits, weights, temperature)`` -> logits (N, C).

``logits`` is (members, N, C) with -inf where a member does not know a class; ``weights`` is (members,), summing to 1.
What is returned becomes the ensemble's distribution when it is divided by ``temperature`` and passed through softmax.
"""
