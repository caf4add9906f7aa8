"""The exception of the workflow; argument errors are plain ValueError and TypeError."""


class SimMIMError(ValueError):
    """A model, budget, data set or file that cannot be handled; the message says what to do."""
