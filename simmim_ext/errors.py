"""The exception that the workflow raises; argument errors are plain ValueError and TypeError."""


class SimMIMError(ValueError):
    """A model, budget, data set or file that the workflow cannot handle; the message says what to do."""
