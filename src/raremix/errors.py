"""The errors and warnings of the package, one class for each thing a caller might handle.

Every class also inherits the built-in a caller would guess, and every message is one string, so
that it survives the trip back from a loader's worker process.
"""

__all__ = [
    "BufferProcessError",
    "CheckpointMismatchError",
    "EmbeddingShapeError",
    "EngineUnavailableError",
    "FileFormatError",
    "ImageInputError",
    "LabelError",
    "LagError",
    "LoaderError",
    "MissingExtraError",
    "NonFiniteError",
    "NotEnoughCalibrationError",
    "NotEnoughReferenceError",
    "OptionError",
    "RaremixError",
    "RaremixWarning",
    "StateMismatchError",
    "TapError",
]


class RaremixError(Exception):
    """Base of every error that the package raises on purpose."""


class OptionError(RaremixError, ValueError):
    """An option lies outside its range, or contradicts another."""


class EmbeddingShapeError(RaremixError, ValueError):
    """Embeddings, ids or scores do not have the shape that the call expects."""


class NonFiniteError(RaremixError, ValueError):
    """No row is free of NaN and infinity, so there is nothing to work with."""


class NotEnoughReferenceError(RaremixError, RuntimeError):
    """Fewer reference embeddings have been seen than the score needs."""


class NotEnoughCalibrationError(RaremixError, RuntimeError):
    """Fewer calibration scores were given than the level needs."""


class EngineUnavailableError(RaremixError, RuntimeError):
    """The neighbour engine that was asked for cannot run here."""


class StateMismatchError(RaremixError, ValueError):
    """A saved state belongs to another version, class or setting."""


class FileFormatError(RaremixError, ValueError):
    """A file is unreadable, truncated, or not of the kind that was expected."""


class CheckpointMismatchError(RaremixError, ValueError):
    """The weights of a checkpoint do not fit the model."""


class ImageInputError(RaremixError, ValueError):
    """An image has a type, shape or size that the views cannot take."""


class LabelError(RaremixError, ValueError):
    """Labels do not fit the scores, or a class has no sample."""


class LagError(RaremixError, RuntimeError):
    """Batches were drawn further ahead of the training step than the declared lag."""


class BufferProcessError(RaremixError, RuntimeError):
    """A buffer was changed or pickled outside the process that made it."""


class LoaderError(RaremixError, TypeError):
    """A loader, sampler or dataset cannot be mixed the way it is set up."""


class TapError(RaremixError, RuntimeError):
    """A tap heard nothing, or something else than one training step."""


class MissingExtraError(RaremixError, ImportError):
    """An optional package is needed and not installed."""


class RaremixWarning(UserWarning):
    """Something was left out or looks wrong, and the work went on."""
