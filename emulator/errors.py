"""The exceptions of the software device."""


class EmulatorError(RuntimeError):
    """Anything that the software device refuses."""


class ToolMissing(EmulatorError):
    """A program that the software device needs is not installed; the message says how to get it."""


class CompileError(EmulatorError):
    """The source does not compile; the message is the compiler's text."""
