"""Simulated users of a product: they ask, judge the answers, and measure what was learned."""
