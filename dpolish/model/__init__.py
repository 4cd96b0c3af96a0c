"""From tokens to log-probabilities.

Loading, branch attention, the chunked head, and the checks that none of it is silently wrong.
"""
