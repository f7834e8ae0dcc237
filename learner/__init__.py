"""The learner: turns rewarded samples into versions of the policy, one micro-batch at a time."""
