"""The vocabulary every process speaks: events, topics, codec, settings, manifests, time and ids.

It knows nothing of torch, Faust, Feast or the engine; whatever crosses between two processes is
declared here and nowhere else.
"""
