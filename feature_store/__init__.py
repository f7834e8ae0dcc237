"""Features of users, sessions, decisions and policy versions: defined once, read everywhere.

`streams` writes them, the gateway reads them online, the learner reads them as of a past moment.
Importing this package is cheap; Feast is imported by the file that opens the store, at first use.
"""
