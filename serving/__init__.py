"""Serving: the gateway users talk to, the engines it asks, and the rollout controller."""
