"""The errors a user can cause, each mapped once: to an exit code here, to an HTTP status in the server.

* PanguError              exit code 2
  + CheckpointError       a folder that is not a checkpoint we can use; NotCarriedOver below it
  + OutputError           an output folder that exists, is being written, or does not fit
  + OptionError           an option's value is not one of its choices
  + MissingExtra          a library that is not installed
  + DataError             a data file that is not what it should be
  + FitError              pangu_training.rrtf.fit
  + CurveError            pangu_training.rrtf.curve
  + SampleError           pangu_training.data.sample
  + RankError             pangu_training.data.ranking
  + SourceError           pangu_training.asking.sources
  + ServedError           pangu_training.asking.endpoint; RefusedError below it
  + SuiteError            pangu_training.evaluation.problem
  + TooFewSamples         pangu_training.evaluation.pass_at_k
  + SandboxError          pangu_training.sandbox.tiers
  + LineFileError         pangu_training.stage.line_file
  + ArtifactError         pangu_convert.artifact
  + DownloadError         pangu_convert.download
  + PushError             pangu_convert.push
  + CalibrationError      pangu_convert.calibration
  + QuantizationError     pangu_convert.gptq_process
  + UnpairedError         pangu_bench.significance
  + RowsError             pangu_bench.rows
  + UsageError            pangu_bench.options
  + RequestError          pangu_server.errors, HTTP 400; Overloaded 429 and NotReady 503 next to it
"""


class PanguError(Exception):
    """Base of them all. The message is one line and says what to do next."""


class CheckpointError(PanguError):
    """The folder is not a checkpoint, or not one of a supported kind."""


class NotCarriedOver(CheckpointError):
    """A format that takes the architecture lacks a setting of this checkpoint."""


class OutputError(PanguError):
    """The output folder cannot be written as asked."""


class OptionError(PanguError):
    """An option's value is not one of its choices. (A command's parser says this itself.)"""


class DataError(PanguError):
    """A data file is not what it should be."""


class MissingExtra(PanguError):
    """A library is not installed, which comes with one of the package's extras."""

    def __init__(self, what: object, extra: str) -> None:
        super().__init__(
            f"{what}: install the extra {extra}, in a checkout with "
            f"pip install --constraint constraints.txt --editable '.[{extra}]'"
        )
