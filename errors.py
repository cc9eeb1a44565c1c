"""Every error this project raises on purpose, as one tree. Each message says what to do next.

E4EError
├── PhotoError            a photo, or what was asked to be done with it, cannot be used
│   └── NoFaceError       a picture without a face in it
├── ModelError            a checkpoint or model name cannot be used
│   └── DownloadError     a file could not be fetched, or what came is not what was published
├── DirectionError        a direction does not exist or does not fit the model
├── SettingError          an environment variable or option of the page cannot be used
└── TrainingError         a data set or a saved run cannot be used
"""


class E4EError(Exception):
    """Base of all errors a person can do something about; `str(error)` is a sentence for them."""


class PhotoError(E4EError):
    """A photo cannot be used: no picture, too large; or what was asked for is not there: a face, a region, a name."""


class NoFaceError(PhotoError):
    """No face was found in a picture that needs one."""


class ModelError(E4EError):
    """A checkpoint or a model name cannot be used."""


class DownloadError(ModelError):
    """A file could not be fetched, or its digest is not the published one."""


class DirectionError(E4EError):
    """A direction does not exist or does not fit the model."""


class SettingError(E4EError):
    """An environment variable or option of the page cannot be used."""


class TrainingError(E4EError):
    """A data set or a saved run cannot be used."""
