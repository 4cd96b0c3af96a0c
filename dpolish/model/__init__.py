"""From tokens to log-probabilities.

Loading, attention over a tree, the chunked head, and the checks that none of it is silently wrong.
"""
