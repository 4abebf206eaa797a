"""Every exception that gnnfx raises on purpose.

A message names the argument, what was given and what was expected.
"""


class GnnfxError(Exception):
    """Base of all gnnfx exceptions."""


class InputError(GnnfxError, ValueError):
    """An argument of a call is wrong: its type, its shape or its values."""


class PolicyError(GnnfxError, ValueError):
    """A policy names an unknown preset, field or module, or would change nothing."""


class CalibrationError(GnnfxError, ValueError):
    """Calibration data is empty, malformed, or holds NaN or Inf."""


class TraceError(GnnfxError, RuntimeError):
    """The model could not be captured as one graph."""


class MismatchError(GnnfxError, RuntimeError):
    """The optimized program does not compute what the model computes: a fault of gnnfx.

    difference: how the results differ, without what is said of the fault.
    """

    def __init__(self, message: str, *, difference: str = "") -> None:
        super().__init__(message)
        self.difference = difference or message


class UnstableError(MismatchError):
    """The results differ, and so do the model's own when its inputs change by a rounding error."""


class AssumptionError(GnnfxError, RuntimeError):
    """A graph takes another branch of the model than the one that was captured."""


class VerifyError(GnnfxError, RuntimeError):
    """A program breaks an invariant of the IR: a fault of the pass that ran last."""


class ParseError(GnnfxError, ValueError):
    """IR text does not follow the grammar of `gnnfx.ir.parse`."""


class ArtifactError(GnnfxError, ValueError):
    """A file is no artifact that this version can load, or a module cannot become one."""
