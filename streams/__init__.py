"""The stream processors: raw records become admitted events, safety, rewards, features, samples.

`flow` tells the story of one record; it and all it uses are plain functions and states that know
neither Faust nor a broker. Faust is in `worker` alone, the Kafka producer in `delivery`.
"""
