"""The errors a user can cause, each mapped once: to an exit code here, to an HTTP status in the server.

* PanguError              exit code 2
  + CheckpointError       a folder that is not a checkpoint we can use
  + OutputError           an output folder that exists, is being written, or does not fit
  + DataError             pangu_training.ranked, pangu_training.problems
  + FitError              pangu_training.fit
  + SampleError           pangu_training.sample
  + SourceError           pangu_training.sources
  + CurveError            pangu_training.curve
  + ArtifactError         pangu_convert.artifact
  + DownloadError         pangu_convert.download
  + CalibrationError      pangu_convert.calibration
  + QuantizationError     pangu_convert.gptq
  + LineFileError         pangu_training.line_file
  + SuiteError            pangu_training.suites
  + RankError             pangu_training.ranking
  + TooFewSamples         pangu_bench.pass_at_k
  + UnpairedError         pangu_bench.significance
  + RowsError             pangu_bench.rows
  + UsageError            pangu_bench.options
  + ServedError           pangu_training.endpoint; RefusedError below it
  + SandboxError          pangu_training.sandbox.tiers
  + RequestError          pangu_server.errors, HTTP 400; Overloaded 429 and NotReady 503 beside it
"""


class PanguError(Exception):
    """Base of them all. The message is one line and says what to do next."""


class CheckpointError(PanguError):
    """The folder is not a checkpoint, or not one of a supported kind."""


class OutputError(PanguError):
    """The output folder cannot be written as asked."""
